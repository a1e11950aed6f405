//! What holds on real networks, told in the laboratory of namespaces.
//!
//! It takes root, `ip` and `nft` (`scripts/setup lab`); whoever may not do that can run the others: `-- --skip lab::`.

mod capture;
mod hosts;
mod links;
mod partitions;
