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

/// Whether a request failed because nobody that is trusted vouches for the other side.
#[must_use]
pub fn is_distrust(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = cause.downcast_ref() {
            return true;
        }
        // An `io::Error` does not count what it carries among its sources.
        let carried = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = carried.map(|carried| carried as &(dyn std::error::Error + 'static)).or_else(|| cause.source());
    }
    false
}
