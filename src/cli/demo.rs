//! `demo`: the service on a database of its own, with real results sent to it over HTTP.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::secrets::{GENERATED_TOKEN, TOKEN_PREFIX};
use crate::serve::Service;

/// Real outputs of GOTTCHA2 2.1.8.6, 2.1.10 and 2.4.3 and of megablast: (path and query, content).
const SAMPLES: [(&str, &[u8]); 4] = [
    (
        "/ingest-gottcha2?sample_id=SRR12689945&run_id=demo&tool_version=2.1.8.6",
        include_bytes!("../../tests/data/gottcha2/v2.1.8.6.SRR12689945.full.tsv"),
    ),
    (
        "/ingest-gottcha2?sample_id=SRR12689945&run_id=demo&tool_version=2.1.10",
        include_bytes!("../../tests/data/gottcha2/v2.1.10.SRR12689945.full.tsv"),
    ),
    (
        "/ingest-gottcha2?sample_id=SRR12689945&run_id=demo&tool_version=2.4.3",
        include_bytes!("../../tests/data/gottcha2/v2.4.3.SRR12689945.full.tsv"),
    ),
    ("/ingest-stast?run_id=demo", include_bytes!("../../tests/data/stast/stast.jsonl")),
];

/// The part of a receipt that is printed.
#[derive(Deserialize)]
struct Receipt {
    dataset: String,
    rows: u64,
    replayed: bool,
}

/// Starts the service, sends the samples, says what it did, and serves until Ctrl-C.
///
/// # Errors
/// See [`Service::start`]; or when a sample is not taken in.
pub async fn run(config: Config) -> Result<()> {
    let plain = config.auth.bearer_token.clone().or_else(|| config.auth.ingest_token.clone());
    if plain.is_none() && config.has_tokens() {
        return Err(Error::Environment("demo sends its samples with a plain token: set BEARER_TOKEN".into()));
    }
    let generated = config.secrets_dir().join(GENERATED_TOKEN);
    let data_dir = config.data_dir.display().to_string();
    let service = Service::start(config).await?;
    let token = match plain {
        Some(token) => token.expose().to_owned(),
        // The service has just made it, or would have refused to start.
        None => crate::secrets::keep(&generated, TOKEN_PREFIX)?,
    };
    let receipts = send_samples(&service.url, &token).await?;
    println!("{}", report(&service.url, &token, &data_dir, &receipts));
    service.run().await
}

async fn send_samples(url: &str, token: &str) -> Result<Vec<Receipt>> {
    let fault = |error: reqwest::Error| Error::Environment(format!("the service does not answer itself: {error}"));
    let client = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).build().map_err(fault)?;
    let mut receipts = Vec::new();
    for (path, content) in SAMPLES {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        let body = gzip.write_all(content).and_then(|()| gzip.finish());
        let body = body.map_err(|error| Error::Internal(format!("compressing a sample failed: {error}")))?;
        let answer = client.post(format!("{url}{path}")).bearer_auth(token).body(body).send().await.map_err(fault)?;
        if !answer.status().is_success() {
            let problem = answer.text().await.map_err(fault)?;
            return Err(Error::Environment(format!("{path} was refused: {problem}")));
        }
        receipts.push(answer.json().await.map_err(fault)?);
    }
    Ok(receipts)
}

fn report(url: &str, token: &str, data_dir: &str, receipts: &[Receipt]) -> String {
    let mut lines = vec![String::new(), "NVD Support Car is up, with real results in it:".to_owned()];
    for name in ["gottcha2", "stast"] {
        let of_name: Vec<&Receipt> = receipts.iter().filter(|receipt| receipt.dataset == name).collect();
        let rows: u64 = of_name.iter().map(|receipt| receipt.rows).sum();
        let known = if of_name.iter().all(|receipt| receipt.replayed) { " (were there already)" } else { "" };
        lines.push(format!("  {name:<10} {rows:>5} rows from {} files{known}", of_name.len()));
    }
    lines.extend([
        String::new(),
        format!("  Try the API     {url}/swagger-ui/"),
        format!("  Read the API    {url}/redoc"),
        format!("  Metrics         {url}/metrics"),
        format!("  Token           {token}"),
        format!("  Everything is in {data_dir}"),
        String::new(),
        "Send a result of your own (this one is bundled; a second time it says \"replayed\": true):".to_owned(),
        format!("  printf 'LEVEL\\tNAME\\tTAXID\\tREAD_COUNT\\tTOTAL_BP_MAPPED\\nspecies\\tOrthoebolavirus zairense\\t3052462\\t513\\t69897\\n' | gzip | curl --fail-with-body -H 'Authorization: Bearer {token}' --data-binary @- '{url}/ingest-gottcha2?sample_id=my-sample'"),
        String::new(),
        "Ctrl-C stops the service and its database.".to_owned(),
    ]);
    lines.join("\n")
}
