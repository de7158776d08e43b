//! Exports to Azurite, Microsoft's own emulator of Azure Blob Storage, which checks signatures.

use std::process::{Child, Command, Stdio};

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;

use crate::app::{RECORD, TestApp, eventually, gzip};

/// The account that every Azurite has, as its documentation says.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

struct Azurite {
    child: Child,
    port: u16,
}

impl Azurite {
    async fn start(program: &str) -> Self {
        nvd_support_car::tls::use_ring();
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("port");
        let port = free.port();
        let mut command = Command::new(program);
        command.args([
            "--inMemoryPersistence",
            "--skipApiVersionCheck",
            "--silent",
            "--disableTelemetry",
            "--blobPort",
            &port.to_string(),
        ]);
        let child = command.stdout(Stdio::null()).spawn().expect("azurite-blob");
        let azurite = Self { child, port };
        eventually("Azurite answers", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        azurite.create_container("lab").await;
        azurite
    }

    /// Source: <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>.
    async fn create_container(&self, name: &str) {
        let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let headers = format!("x-ms-date:{date}\nx-ms-version:2021-12-02");
        let signed = format!("PUT{}{headers}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container", "\n".repeat(12));
        let mut mac = Hmac::<Sha256>::new_from_slice(&BASE64.decode(KEY.as_bytes()).expect("key")).expect("key");
        mac.update(signed.as_bytes());
        let signature = BASE64.encode(&mac.finalize().into_bytes());
        let url = format!("http://127.0.0.1:{}/{ACCOUNT}/{name}?restype=container", self.port);
        let request = reqwest::Client::new().put(url).header("x-ms-date", date).header("x-ms-version", "2021-12-02");
        let request = request.header("authorization", format!("SharedKey {ACCOUNT}:{signature}"));
        let answer = request.header("content-length", "0").send().await.expect("answer");
        assert_eq!(answer.status(), 201, "{}", answer.text().await.expect("text"));
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs NVD_AZURITE: the program azurite-blob of the npm package azurite; .ci/run has it"]
async fn an_export_to_azure_is_uploaded_in_blocks_and_downloaded_by_a_signed_link() {
    let azurite = Azurite::start(&std::env::var("NVD_AZURITE").expect("NVD_AZURITE")).await;
    let endpoint = format!("http://127.0.0.1:{}/{ACCOUNT}", azurite.port);
    let query = reqwest::Url::parse_with_params(
        "az://lab/exports",
        [("account_name", ACCOUNT), ("account_key", KEY), ("endpoint", &endpoint)],
    );
    let app = TestApp::with(&[("export.storage", query.expect("URL").as_str())]).await;
    app.app.storage.check().await.expect("the probe");
    app.store("/ingest-gottcha2", gzip(format!("{RECORD}\n").repeat(90_000))).await;
    let export = app.export(json!({"table": "gottcha2", "format": "csv", "compression": "none"})).await;
    assert_eq!(export["status"], "completed", "{export}");
    // More than one block of 5 MiB.
    assert!(export["size_bytes"].as_u64().expect("size") > 9_000_000, "{export}");
    let link = export["download_url"].as_str().expect("link");
    let plain =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().expect("client");
    let redirect = plain.get(link).send().await.expect("answer");
    assert_eq!(redirect.status(), 302);
    assert!(redirect.headers()["location"].to_str().expect("URL").starts_with(&endpoint));
    // Who asks for the size is led to a signature that holds for it.
    let head = reqwest::Client::new().head(link).send().await.expect("answer");
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-length"], export["size_bytes"].to_string().as_str());
    let bytes = app.download(&export).await;
    let digest = data_encoding::HEXLOWER.encode(&<Sha256 as sha2::Digest>::digest(&bytes));
    assert_eq!(export["sha256"], digest);
    let path = format!("/exports/{}", export["id"].as_str().expect("id"));
    assert_eq!(app.request("DELETE", &path).send().await.expect("answer").status(), 204);
    assert_eq!(reqwest::get(link).await.expect("answer").status(), 404);
}
