//! `demo`: the service on a database of its own, with real results sent to it over HTTP.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde_json::json;

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

/// The part of a job that is looked at.
#[derive(Deserialize)]
struct Job {
    job_id: String,
    export_id: Option<String>,
    status: String,
}

/// The part of an export that is printed.
#[derive(Deserialize)]
struct Exported {
    download_url: String,
}

/// Starts the service, sends the samples, says what it did, and serves until Ctrl-C.
///
/// # Errors
/// See [`Service::start`]; or when a sample is not taken in.
pub async fn run(config: Config) -> Result<()> {
    let plain = config.auth.bearer_token.clone();
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
    let exports = [export(&service.url, &token, "gottcha2").await?, export(&service.url, &token, "stast").await?];
    println!("{}", report(&service.url, &token, &data_dir, &receipts, &exports));
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

/// Exports a dataset through the API, and waits until it is done.
async fn export(url: &str, token: &str, table: &str) -> Result<Exported> {
    let fault = |error: reqwest::Error| Error::Environment(format!("the service does not answer itself: {error}"));
    let client = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).build().map_err(fault)?;
    let get = |path: String| client.get(format!("{url}{path}")).bearer_auth(token).send();
    let request = client.post(format!("{url}/exports/trigger")).bearer_auth(token);
    let job: Job = request.json(&json!({"table": table})).send().await.map_err(fault)?.json().await.map_err(fault)?;
    loop {
        let now: Job = get(format!("/jobs/{}", job.job_id)).await.map_err(fault)?.json().await.map_err(fault)?;
        match (now.status.as_str(), now.export_id) {
            ("completed", Some(id)) => {
                return get(format!("/exports/{id}")).await.map_err(fault)?.json().await.map_err(fault);
            }
            ("pending" | "running", _) => tokio::time::sleep(Duration::from_millis(100)).await,
            _ => {
                return Err(Error::Environment(format!(
                    "the export of {table} failed: GET /jobs/{} says why",
                    job.job_id
                )));
            }
        }
    }
}

fn report(url: &str, token: &str, data_dir: &str, receipts: &[Receipt], exports: &[Exported; 2]) -> String {
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
        "Send a result (this line makes one; a second time it says \"replayed\": true):".to_owned(),
        format!("  printf 'LEVEL\\tNAME\\tTAXID\\tREAD_COUNT\\tTOTAL_BP_MAPPED\\nspecies\\tOrthoebolavirus zairense\\t3052462\\t513\\t69897\\n' | gzip | curl --fail-with-body -H 'Authorization: Bearer {token}' --data-binary @- '{url}/ingest-gottcha2?sample_id=my-sample'"),
        String::new(),
        "Both tables are exported as Parquet. Read them (the links work for an hour; GET /exports?whole=true has new ones):".to_owned(),
        format!("  duckdb -c \"SELECT level, count(*) FROM '{}' GROUP BY level\"", exports[0].download_url),
        format!("  python3 -c \"import pandas; print(pandas.read_parquet('{}').describe())\"", exports[1].download_url),
        String::new(),
        "Ctrl-C stops the service and its database.".to_owned(),
    ]);
    lines.join("\n")
}
