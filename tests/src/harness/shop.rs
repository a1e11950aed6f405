//! What tales say in the repository of the sample shop.

/// The file that a tale says [`closed_to`] in.
pub const CLOSED: &str = "security/closed.yaml";

/// Denies the reviews, by the rule `to-callers` on the ninth line, to a service account; to `nobody`, it closes nothing.
pub fn closed_to(account: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\n\
         kind: AuthorizationPolicy\n\
         metadata: {{ name: closed, namespace: shop }}\n\
         spec:\n\
         \x20 targetRefs: [{{ kind: Service, name: reviews }}]\n\
         \x20 action: DENY\n\
         \x20 rules:\n\
         \x20   - name: to-callers\n\
         \x20     when: source.serviceAccount == \"{account}\"\n"
    )
}
