//! The one TLS implementation of the process: rustls with ring.

use reqwest::{Certificate, Client, ClientBuilder};

/// Makes ring the cryptography of every TLS connection of this process. A second call changes nothing.
pub fn use_ring() {
    // An error means only that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// An HTTP client that trusts whom its machine trusts. A bare machine trusts nobody; there the client trusts the
/// authorities of Mozilla's list, which come along.
///
/// # Errors
/// When it cannot be set up.
pub fn client(options: impl Fn() -> ClientBuilder) -> reqwest::Result<Client> {
    let listed = || webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|der| Certificate::from_der(der));
    options().build().or_else(|_| options().tls_certs_only(listed().collect::<reqwest::Result<Vec<_>>>()?).build())
}
