//! OpenAPI: what the routes and the dataset definitions say together, and the two pages that show it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::Html;
use axum::routing::get;
use serde_json::{Map, Value, json};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_redoc::{Redoc, Servable};
use utoipa_swagger_ui::SwaggerUi;

use super::exports::ExportFilter;
use super::extract_docs;
use super::key;
use super::problem::{PROBLEM_JSON, ProblemBody};
use crate::dataset::{Dataset, Datasets, openapi};

/// Where the page of Redoc finds its program when the operator has no copy of it.
const REDOC_CDN: &str = "https://cdn.redoc.ly/redoc/latest/bundles/redoc.standalone.js";

/// Where the operator's copy of Redoc's program is served.
const REDOC_LOCAL: &str = "/redoc/redoc.standalone.js";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "NVD Support Car API",
        description = "Takes in metagenomic results from HTCondor workers, exactly once, exports them as Parquet, and delivers them to LabKey.",
        license(name = "MIT", identifier = "MIT")
    ),
    components(schemas(ProblemBody, ExportFilter)),
    tags(
        (name = "ingest", description = "Sending result files: one body is one submission, stored whole or not at all"),
        (name = "submissions", description = "What has been taken in"),
        (name = "exports", description = "Tables as files: what was exported, asking for more, downloading"),
        (name = "export jobs", description = "Exactly the rows and columns that a user asks for, in his format, for some hours"),
        (name = "extracts", description = "Named configurations that run on demand or by cron, and make described, checksummed bundles"),
        (name = "labkey", description = "Delivery to LabKey's lists: starting it, how far it is, what was refused and why"),
        (name = "jobs", description = "Background work: how far it is, and stopping it"),
        (name = "datasets", description = "What can be sent"),
        (name = "system", description = "Health, metrics, version"),
    )
)]
struct Base;

/// The statuses that routes behind a token may answer with, beside their own.
const SECURED: [(&str, &str); 4] = [
    ("401", "No valid token; see `WWW-Authenticate`"),
    ("403", "The token lacks the scope"),
    ("429", "Too many requests of this token wait; see `Retry-After`"),
    ("503", "Overloaded, or the database is away; see `Retry-After`"),
];

/// The statuses that routes with a body may answer with.
const BODY: [(&str, &str); 5] = [
    ("400", "The body is damaged, incomplete, not UTF-8, or in no known format; nothing is stored"),
    ("408", "No data arrived for too long; nothing is stored"),
    ("409", "The key was used for other content"),
    ("413", "A limit is exceeded; nothing is stored"),
    ("422", "Rows or parameters do not fit the dataset; nothing is stored"),
];

/// What every download may answer besides the file.
const DOWNLOAD: [(&str, &str); 5] = [
    ("302", "The file lies in a bucket, at the address in `Location`"),
    ("304", "The client has it already"),
    ("401", "Neither a link nor a token"),
    ("403", "The link was changed or its time is over, or the token lacks scope `read`"),
    ("416", "The file has no such range"),
];

/// Lays routes with and without token together and adds what the definitions and the error type say.
pub fn complete(secured: Vec<OpenApi>, open: OpenApi, datasets: &Datasets) -> Value {
    let secured_paths: Vec<String> = secured.iter().flat_map(|api| api.paths.paths.keys().cloned()).collect();
    let mut base = Base::openapi();
    for api in secured.into_iter().chain([open]) {
        base.merge(api);
    }
    let mut api = serde_json::to_value(base).unwrap_or_default();
    let components = &mut api["components"];
    components["securitySchemes"] = json!({"bearer": {"type": "http", "scheme": "bearer",
        "description": "An access token with the scope of the route: `nvd-support-car token new` makes one."}});
    flatten(&mut components["schemas"]);
    add_schemas(&mut components["schemas"], datasets);
    for (path, item) in api["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            complete_operation(operation, path, method, secured_paths.contains(path), datasets);
        }
    }
    api
}

fn complete_operation(operation: &mut Value, path: &str, method: &str, is_secured: bool, datasets: &Datasets) {
    let mut problems = vec![("500", "A fault of the service; its log says more under the request's id")];
    if is_secured {
        operation["security"] = json!([{"bearer": []}]);
        problems.extend(SECURED);
    }
    if path.starts_with("/ingest") {
        problems.extend(BODY);
        complete_ingest(operation, path, method, datasets);
    }
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        // A header that may be absent is never null.
        if parameter["schema"]["type"] == json!(["string", "null"]) {
            parameter["schema"]["type"] = "string".into();
        }
        if parameter["name"] == key::HEADER || parameter["name"] == "key" {
            parameter["schema"] = key::schema();
        }
        if parameter["name"] == "wait" {
            parameter["allowEmptyValue"] = true.into();
        }
        // Whatever the names are here, to every client they are a choice.
        let is_dataset = ["dataset", "table"].contains(&parameter["name"].as_str().unwrap_or_default());
        if parameter["name"] == "table_name" {
            parameter["schema"] = json!({"$ref": "#/components/schemas/TableName"});
        }
        if is_dataset || (path == "/datasets/{name}" && parameter["name"] == "name") {
            parameter["schema"] = json!({"$ref": "#/components/schemas/DatasetName"});
            problems.push(("404", "There is no dataset of that name"));
        }
    }
    if path.ends_with("/download") {
        problems.extend(DOWNLOAD);
        if operation["responses"].get("206").is_none() {
            operation["responses"]["206"] = operation["responses"]["200"].clone();
            operation["responses"]["206"]["description"] = "A range of the file".into();
        }
        // The media type is that of the file, which may be JSON. Generated clients take the one that they know for bytes.
        for status in ["200", "206"] {
            operation["responses"][status]["content"]["*/*"] = json!({});
        }
        // A signed link does instead of a token.
        operation["security"] = json!([{"bearer": []}, {}]);
    }
    if ["/labkey/sync", "/labkey/status", "/labkey/stats", "/labkey/retry"].contains(&path) {
        problems.push(("409", "LabKey is not configured"));
    }
    if operation["requestBody"]["content"].get("application/json").is_some() {
        operation["requestBody"]["required"] = true.into();
        problems.push(("400", "The body is no JSON"));
        problems.push(("413", "The body is larger than 2 MiB"));
        problems.push(("415", "The body does not say that it is JSON"));
        problems.push(("422", "A field is wrong, or unknown"));
    }
    if ["/exports/trigger", "/labkey/retry"].contains(&path) {
        problems.push(("404", "There is no dataset of that name"));
    }
    if path == "/readyz" {
        problems.push(("503", "The database is away or not up to date; `detail` says which"));
    }
    if operation["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["in"] == "query")) {
        problems.push(("422", "A parameter has a wrong value"));
        problems.push(("400", "A parameter is unknown or cannot be read"));
    }
    if path.contains('{') {
        problems.push(("400", "A part of the path cannot be read"));
        problems.push(("404", "There is nothing of that name"));
    }
    let schema = json!({"schema": {"$ref": "#/components/schemas/Problem"}});
    let content = Map::from_iter([(PROBLEM_JSON.to_owned(), schema)]);
    for (status, description) in problems {
        let responses = &mut operation["responses"];
        if responses.get(status).is_none() {
            responses[status] = json!({"description": description});
        }
    }
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if status.starts_with(['4', '5']) {
            response["content"] = json!(content);
        } else {
            extract_docs::lead(response);
        }
    }
}

/// Bodies and parameters of the ingest routes come from the dataset definitions.
fn complete_ingest(operation: &mut Value, path: &str, method: &str, datasets: &Datasets) {
    let fixed = match path {
        "/ingest-gottcha2" => datasets.get("gottcha2"),
        "/ingest-stast" => datasets.get("stast"),
        "/ingest" => datasets.get("results"),
        _ => None,
    };
    let records = fixed.map_or_else(
        || "the dataset's record, such as `Gottcha2Record` for `gottcha2`".to_owned(),
        |one| format!("`{}`", one.record_name()),
    );
    let mut body = json!({"schema": {"type": "string", "format": "binary"}});
    if let Some(dataset) = fixed {
        body["examples"]["jsonl"] =
            json!({"summary": "A record a line", "value": format!("{}\n", openapi::example(dataset))});
    }
    // One media type: the service looks at the content alone, and generated clients can send a file as it is.
    operation["requestBody"] = json!({
        "required": true,
        "description": format!("A result file: one record a line as JSON ({records}), or tab-separated values with a header; compressed with gzip, zstd or zlib, or plain. Format and compression are recognised by content, whatever the headers say."),
        "content": {"application/octet-stream": body},
    });
    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    if method == "post" {
        parameters.push(json!({"name": key::HEADER, "in": "header", "required": false,
            "description": "Names this file for ever. Without it the content itself is the key."}));
    }
    let taken: Vec<&Dataset> =
        fixed.map_or_else(|| datasets.iter().map(AsRef::as_ref).collect(), |one| vec![one.as_ref()]);
    parameters.extend(query_parameters(&taken));
    operation["parameters"] = Value::Array(parameters);
}

fn query_parameters(datasets: &[&Dataset]) -> Vec<Value> {
    let parameter = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "required": false, "description": description, "schema": schema});
    let mut parameters = vec![
        parameter(
            "format",
            "The format of the rows; recognised when absent.",
            json!({"$ref": "#/components/schemas/RowFormat"}),
        ),
        parameter(
            "on_conflict",
            "What to do when the key was used for other content: refuse with 409, or replace it.",
            json!({"$ref": "#/components/schemas/OnConflict"}),
        ),
    ];
    for name in ["sample_id", "run_id", "experiment", "task", "tool_version", "db_version"] {
        let known = datasets.iter().find_map(|dataset| dataset.columns.iter().find(|column| column.name == name));
        if let Some(column) = known {
            let description = "Fills this column where rows lack it, as any column of the dataset can be.";
            parameters.push(parameter(name, description, openapi::parameter_schema(column)));
        }
    }
    parameters
}

/// Schemas that are not written in Rust: the datasets and their records, the words of the ingest routes' parameters.
fn add_schemas(schemas: &mut Value, datasets: &Datasets) {
    for dataset in datasets.iter() {
        schemas[dataset.record_name()] = openapi::record_schema(dataset);
    }
    schemas["DatasetName"] =
        json!({"type": "string", "enum": datasets.names(), "description": "The name of a dataset."});
    let tables = datasets.iter().flat_map(|dataset| [&dataset.name, &dataset.table]);
    let tables: BTreeSet<&String> = tables.collect();
    schemas["TableName"] =
        json!({"type": "string", "enum": tables, "description": "The name of a dataset, or of its table."});
    schemas["ExportRequest"]["properties"]["table"] =
        json!({"$ref": "#/components/schemas/DatasetName", "description": "The dataset's name."});
    schemas["ExportJobRequest"]["properties"]["table_name"] = json!({"$ref": "#/components/schemas/TableName",
        "description": "The dataset's name, or its table's; `GET /api/v1/export/tables` lists them."});
    schemas["LabkeyRetryRequest"]["properties"]["dataset"] = json!({"description": "Of that dataset.",
        "oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/DatasetName"}]});
    schemas["RowFormat"] = json!({"type": "string", "enum": ["jsonl", "ndjson", "tsv"], "description": "How the rows of a file are written."});
    extract_docs::complete(schemas);
    schemas["OnConflict"] = json!({"type": "string", "enum": ["refuse", "replace"], "default": "refuse",
        "description": "What becomes of other content under a known key."});
}

/// Lays the parts of flattened structs together: `allOf` of a part that forbids other fields would forbid everything.
fn flatten(schemas: &mut Value) {
    let known = schemas.clone();
    for schema in schemas.as_object_mut().into_iter().flat_map(Map::values_mut) {
        let Some(parts) = schema["allOf"].as_array().cloned() else { continue };
        let mut whole = json!({"type": "object", "description": schema["description"]});
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for part in &parts {
            let reference = part["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
            let part = reference.map_or(part, |name| &known[name]);
            properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
            required.extend(part["required"].as_array().cloned().unwrap_or_default());
            if let Some(others) = part.get("additionalProperties") {
                whole["additionalProperties"] = others.clone();
            }
        }
        // Generated TypeScript takes a field with a default for one that has to be there.
        properties.values_mut().filter_map(Value::as_object_mut).for_each(|property| drop(property.remove("default")));
        whole["properties"] = Value::Object(properties);
        whole["required"] = Value::Array(required);
        *schema = whole;
    }
}

/// The description itself, and the pages that show it. Swagger UI needs no internet; Redoc needs none where the operator
/// has a copy of its program.
pub fn pages(api: Value, redoc_bundle: Option<PathBuf>) -> Router {
    let bundle = redoc_bundle.filter(|path| path.is_file());
    let script = if bundle.is_some() { REDOC_LOCAL } else { REDOC_CDN };
    let redoc = Redoc::with_url("/redoc", api.clone()).custom_html(redoc_page(script));
    let description = api.clone();
    let mut router: Router = Router::new()
        .merge(SwaggerUi::new("/swagger-ui").external_url_unchecked("/api-docs/openapi.json", api))
        .route("/openapi.json", get(move || std::future::ready(axum::Json(description.clone()))))
        .merge(redoc)
        .route("/", get(|| std::future::ready(Html(INDEX))));
    if let Some(path) = bundle {
        let serve = move || {
            let path = path.clone();
            async move {
                let bytes = tokio::fs::read(&path).await.map_err(|error| {
                    let text = format!("cannot read {}: {error}", path.display());
                    super::problem::Problem::from(crate::Error::Internal(text))
                })?;
                Ok::<_, super::problem::Problem>(([(CONTENT_TYPE, "text/javascript; charset=utf-8")], bytes))
            }
        };
        router = router.route(REDOC_LOCAL, get(serve));
    }
    router
}

fn redoc_page(script: &str) -> String {
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head><title>NVD Support Car API</title><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ margin: 0; padding: 0; }}</style></head>
<body><div id="redoc"></div><script src="{script}"></script>
<script>Redoc.init($spec, $config, document.getElementById("redoc"));</script></body>
</html>
"#
    )
}

/// The page for people who open the service's address in a browser.
const INDEX: &str = r#"<!DOCTYPE html>
<html lang="en"><head><title>NVD Support Car</title><meta charset="utf-8"></head>
<body><h1>NVD Support Car</h1><ul>
<li><a href="/swagger-ui/">Try the API (Swagger UI)</a></li>
<li><a href="/redoc">Read the API (Redoc)</a></li>
<li><a href="/openapi.json">OpenAPI description</a></li>
<li><a href="/datasets">Datasets</a></li>
<li><a href="/metrics">Metrics</a></li>
</ul></body></html>
"#;
