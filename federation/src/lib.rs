//! Peers and trust: join, the link between clusters, the certificate authority, bundles.
