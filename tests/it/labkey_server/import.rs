//! Import of text or of a file: the one action that can merge, and that answers its failures with 200.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Permission;
use super::actions::{note, transact};
use super::lists::Refusal;
use super::wire::{Account, Asked, Reply, Visit};

pub(super) fn import(visit: &Visit, asked: &Asked) -> Result<Reply, Reply> {
    let is_upload = asked.content_type().starts_with("multipart/");
    let mut parameters: HashMap<String, String> = asked.parameters().into_iter().collect();
    if is_upload {
        parameters.extend(parts(asked).ok_or_else(|| Reply::html(400, "Illegal request body"))?);
    }
    let is_browser = is_upload && asked.headers.get("X-Requested-With").is_none_or(|by| by != "XMLHttpRequest");
    let reply = rows(visit, &parameters).unwrap_or_else(|refused| refused);
    Ok(if is_browser && reply.status == 200 { reply.called_html() } else { reply })
}

/// The parts of a form in which a file may be, as names and texts.
fn parts(asked: &Asked) -> Option<Vec<(String, String)>> {
    let (_, boundary) = asked.content_type().split_once("boundary=")?;
    let boundary = format!("--{}", boundary.trim_matches('"'));
    let mut parts = Vec::new();
    for part in std::str::from_utf8(&asked.body).ok()?.split(&boundary).skip(1) {
        // The last one is but a mark.
        let Some((head, content)) = part.split_once("\r\n\r\n") else { continue };
        let attribute = |name: &str| head.split_once(&format!("; {name}=\""))?.1.split('"').next();
        let name = attribute("name")?;
        parts.push((name.to_owned(), content.strip_suffix("\r\n")?.to_owned()));
        if let Some(file) = attribute("filename") {
            let format = if file.ends_with(".csv") { "csv" } else { "tsv" };
            parts.push((format!("format of {name}"), format.to_owned()));
        }
    }
    Some(parts)
}

fn rows(visit: &Visit, parameters: &HashMap<String, String>) -> Result<Reply, Reply> {
    let parameter = |name: &str| parameters.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let schema = parameter("schemaName").unwrap_or_default();
    let not_found = |message: &str| Reply::exception(200, "org.labkey.api.view.NotFoundException", message);
    if !schema.eq_ignore_ascii_case("lists") {
        return Err(not_found("The specified schema does not exist"));
    }
    let query = parameter("queryName").or_else(|| parameter("query.queryName"));
    let query = query.ok_or_else(|| not_found("Query not specified"))?;
    let (rows, audits) = transact(visit, |transaction| {
        let list = transaction.lists.get_mut(&query.to_lowercase());
        let missing = || not_found(&format!("The specified query '{query}' does not exist in schema '{schema}'"));
        let list = list.ok_or_else(missing)?;
        if !visit.may(Permission::Insert) {
            let is_guest = visit.account == Account::Guest;
            return Err(if is_guest {
                visit.forbidden()
            } else {
                form("User does not have permission to insert rows")
            });
        }
        let option = parameter("insertOption").unwrap_or("INSERT");
        let merges = match option {
            "INSERT" | "IMPORT" => false,
            "MERGE" if list.is_auto => {
                return Err(illegal(&format!("{option} action is not supported for {}.", list.name())));
            }
            "MERGE" => true,
            _ => {
                let class = "org.labkey.api.query.QueryUpdateService.InsertOption";
                return Err(illegal(&format!("No enum constant {class}.{option}")));
            }
        };
        if merges && !visit.may(Permission::Update) {
            return Err(form("User does not have permission to update rows"));
        }
        let (text, format) = match (parameter("text"), parameter("file")) {
            (Some(text), _) => (text, parameter("format")),
            (None, Some(file)) => (file, parameter("format of file")),
            (None, None) => return Err(form("Form contains no data")),
        };
        let rows = table(text, if format == Some("csv") { ',' } else { '\t' });
        let changes = &mut transaction.changes;
        let done = if merges { list.merge(&rows, changes) } else { list.insert(&rows, changes).map(drop) };
        done.map_err(refused)?;
        let (behavior, comment) = (parameter("auditBehavior"), parameter("auditUserComment"));
        let id = transaction.audit("import", behavior, comment, rows.len());
        Ok((rows.len(), id))
    })?;
    note(visit, audits);
    let (count, id) = rows;
    let mut body = json!({"success": true, "rowCount": count});
    if let Some(id) = id {
        body["transactionAuditId"] = json!(id);
        body["reselectRowCount"] = json!(false);
    }
    Ok(Reply::json(200, &body))
}

fn illegal(message: &str) -> Reply {
    Reply::exception(200, "java.lang.IllegalArgumentException", message)
}

/// A failure that concerns no field.
pub(super) fn form(message: &str) -> Reply {
    Reply::json(200, &json!({"success": false, "exception": message, "errors": {"_form": message}}))
}

pub(super) fn refused(refusal: Refusal) -> Reply {
    let (first, error) = match refusal {
        Refusal::Row { number, faults, .. } => {
            let first = faults[0].1.clone();
            let errors: Map<String, Value> =
                faults.into_iter().map(|(field, message)| (field, Value::String(message))).collect();
            let error = json!({"exception": first, "errors": errors, "rowNumber": number});
            (first, error)
        }
        Refusal::Database(message) => {
            let error = json!({"exception": message, "errors": {"_form": message}});
            (message, error)
        }
        Refusal::NotFound => unreachable!("import does not update"),
    };
    let body = json!({"errors": [error], "errorCount": 1, "exception": first, "success": false});
    Reply::json(200, &body)
}

/// The rows below a header, read as LabKey reads them: blank lines and lines that begin with `#` are skipped, cells
/// without quotes are trimmed and their backslashes are escapes, quotes are doubled within quotes.
fn table(text: &str, delimiter: char) -> Vec<Map<String, Value>> {
    let text = text.replace("\r\n", "\n");
    let mut rest = text.as_str();
    let header = record(&mut rest, delimiter).unwrap_or_default();
    let mut rows = Vec::new();
    while let Some(fields) = record(&mut rest, delimiter) {
        let cell = |text: String| if text.is_empty() { Value::Null } else { Value::String(text) };
        let mut cells: Vec<_> = fields.into_iter().map(cell).collect();
        cells.resize(header.len(), Value::Null);
        rows.push(header.iter().cloned().zip(cells).collect());
    }
    rows
}

/// The next line that counts, and more of them while a quote is open, as fields.
fn record(rest: &mut &str, delimiter: char) -> Option<Vec<String>> {
    while let Some(line) = rest.split('\n').next().filter(|line| line.starts_with('#') || line.trim().is_empty()) {
        *rest = rest.get(line.len() + 1..)?;
    }
    let mut fields = Vec::new();
    loop {
        let mut field = String::new();
        let is_quoted = rest.starts_with('"');
        if is_quoted {
            let end = closing(rest).unwrap_or(rest.len());
            field = rest[1..end].replace("\"\"", "\"");
            *rest = rest.get(end + 1..).unwrap_or_default();
        }
        let end = rest.find([delimiter, '\n']).unwrap_or(rest.len());
        let plain = &rest[..end];
        field += &if is_quoted { plain.to_owned() } else { unescaped(plain.trim()) };
        fields.push(field);
        *rest = &rest[end..];
        let Some(more) = rest.strip_prefix(delimiter) else { break };
        *rest = more.trim_start_matches(|c: char| c != delimiter && c != '\n' && c.is_whitespace());
    }
    *rest = rest.strip_prefix('\n').unwrap_or_default();
    Some(fields)
}

/// Where the quote at the beginning is closed.
fn closing(text: &str) -> Option<usize> {
    let mut from = 1;
    loop {
        let end = from + text[from..].find('"')?;
        if !text[end + 1..].starts_with('"') {
            return Some(end);
        }
        from = end + 2;
    }
}

/// A text with Java's escapes resolved.
fn unescaped(text: &str) -> String {
    if text == "\\N" {
        return String::new();
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match if c == '\\' {
            chars.next()
        } else {
            out.push(c);
            continue;
        } {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}
