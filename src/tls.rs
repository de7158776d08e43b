//! The one TLS implementation of the process: rustls with ring.

use reqwest::{Certificate, Client, ClientBuilder};
use rustls::InvalidMessage;

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

/// What is wrong where TLS failed and will fail again, and what to do about it.
#[must_use]
pub fn refusal(error: &reqwest::Error) -> Option<(&'static str, &'static str)> {
    match fault(error)? {
        rustls::Error::InvalidCertificate(_) => {
            Some(("the service is not trusted", "SSL_CERT_FILE names certificates to trust"))
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some(("the service does not speak TLS", "its address begins with http://"))
        }
        _ => None,
    }
}

fn fault(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(fault) = cause.downcast_ref() {
            return Some(fault);
        }
        // An `io::Error` does not count what it carries among its sources.
        let carried = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = carried.map(|carried| carried as &(dyn std::error::Error + 'static)).or_else(|| cause.source());
    }
    None
}
