//! The policy language of Weft: facts, the CEL checker, evaluation, verdicts.
