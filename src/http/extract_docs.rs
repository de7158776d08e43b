//! Schemas about extracts that no derive can tell: words, requests whose fields may be absent or null, named envelopes.

use serde_json::{Map, Value, json};

use super::extracts::READ_ONLY;

/// What utoipa names an envelope of something.
const ENVELOPE: &str = "Success_";

/// What made a run.
#[derive(utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes the words that `jobs::extract` stores")]
pub enum ExtractCause {
    /// A request.
    Manual,
    /// Its schedule.
    Schedule,
}

/// What is in a file of a run.
#[derive(utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ExtractArtifactKind)]
#[expect(dead_code, reason = "describes the words that `jobs::extract` stores")]
pub enum ArtifactKind {
    /// The datasets, their columns, and how much is in them.
    Describe,
    /// Rows of a dataset.
    Data,
    /// All other files of the run in one ZIP.
    Archive,
    /// Every file with its digest.
    Manifest,
}

/// Where files lie.
#[derive(utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes the words of `storage_backend`")]
pub enum StorageBackend {
    /// In a folder.
    Local,
    /// In a bucket.
    Object,
}

/// Adds the schemas of requests, and gives envelopes the names that [`answer`] tells.
pub fn complete(schemas: &mut Value) {
    add_requests(schemas);
    let Some(schemas) = schemas.as_object_mut() else { return };
    let envelopes: Vec<String> = schemas.keys().filter(|name| name.starts_with(ENVELOPE)).cloned().collect();
    for envelope in envelopes {
        let Some(mut schema) = schemas.remove(&envelope) else { continue };
        let (content, is_list) = content(&envelope);
        let reference = json!({"$ref": format!("#/components/schemas/{content}")});
        let data = if is_list { json!({"type": "array", "items": reference}) } else { reference };
        schema["properties"]["data"] = data;
        schemas.insert(answer(&envelope), schema);
    }
}

/// Leads a response to the new name of its envelope.
pub fn lead(response: &mut Value) {
    let Some(schema) = response.pointer_mut("/content/application~1json/schema/$ref") else { return };
    let Some(envelope) = schema.as_str().and_then(|reference| reference.rsplit('/').next()) else { return };
    if envelope.starts_with(ENVELOPE) {
        *schema = format!("#/components/schemas/{}", answer(envelope)).into();
    }
}

/// The name of an envelope for people: `ExtractAnswer`, `ExtractListAnswer`.
fn answer(envelope: &str) -> String {
    let (content, is_list) = content(envelope);
    format!("{content}{}Answer", if is_list { "List" } else { "" })
}

/// What is in an envelope, and whether it is a list of that.
fn content(envelope: &str) -> (&str, bool) {
    let name = envelope.trim_start_matches(ENVELOPE);
    name.strip_prefix("Vec_").map_or((name, false), |name| (name, true))
}

/// What `POST` and `PUT` take: every field of an extract may be absent, and null is its default.
fn add_requests(schemas: &mut Value) {
    let mut fields = schemas["ExtractConfig"]["properties"].as_object().cloned().unwrap_or_default();
    for (name, field) in &mut fields {
        match name.as_str() {
            "schemas" => {
                field["items"] = json!({"$ref": "#/components/schemas/DatasetName"});
                field["uniqueItems"] = true.into();
            }
            "include" => field["uniqueItems"] = true.into(),
            _ => {}
        }
    }
    fields.iter_mut().filter(|(name, _)| *name != "name").for_each(|(_, field)| allow_null(field));
    let request = |description: &str, fields: &Map<String, Value>, required: Value| {
        json!({"type": "object", "description": description, "properties": fields, "required": required,
            "additionalProperties": false})
    };
    schemas["ExtractRequest"] = request("What is extracted, how, and when.", &fields, json!(["name"]));
    let mut version = schemas["Extract"]["properties"]["version"].clone();
    version["description"] = "The version that was read, unless `If-Match` names it.".into();
    allow_null(&mut version);
    fields.insert("version".into(), version);
    for (name, _) in READ_ONLY {
        let read = &schemas["Extract"]["properties"][name];
        let mut field = json!({"type": read["type"], "description": "As it was read; only the service changes it."});
        if let Some(format) = read.get("format") {
            field["format"] = format.clone();
        }
        allow_null(&mut field);
        fields.insert(name.into(), field);
    }
    let description = "What shall be different. An extract that was read can be sent back with changes.";
    schemas["ExtractChange"] = request(description, &fields, json!([]));
}

/// Lets a field be null.
fn allow_null(field: &mut Value) {
    if let Some(kind) = field["type"].as_str() {
        field["type"] = json!([kind, "null"]);
    } else if let Some(reference) = field.get("$ref").cloned() {
        *field = json!({"description": field["description"], "oneOf": [{"type": "null"}, {"$ref": reference}]});
    }
}
