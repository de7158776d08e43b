//! The one TLS implementation of the process: rustls with ring.

/// Makes ring the cryptography of every TLS connection of this process. A second call changes nothing.
pub fn use_ring() {
    // An error means only that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
}
