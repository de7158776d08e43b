//! The actions, but for import: who may call them, and what they answer.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::lists::{Changes, List, Refusal};
use super::wire::{Account, Asked, Reply, Visit, token};
use super::{Audit, CONTAINER, Permission, USER, select};

/// What is checked before an action runs.
pub(super) struct Rule {
    /// Answers POST only.
    pub is_mutating: bool,
    pub has_csrf: bool,
    /// One of them is enough; none is asked if empty.
    pub permissions: &'static [Permission],
}

/// The rule of an action, if there is such an action.
pub(super) fn rule(action: &str) -> Option<Rule> {
    use Permission::{Delete, Insert, Read, Update};
    let (is_mutating, has_csrf, permissions): (_, _, &[Permission]) = match action {
        "login-whoami" => (false, true, &[]),
        "query-getQuery" | "query-selectRows" => (false, false, &[Read]),
        "query-getQueryDetails" => (false, true, &[Read]),
        "query-insertRows" => (true, true, &[Read, Insert]),
        "query-updateRows" | "query-deleteRows" | "query-import" => (true, true, &[Read]),
        "query-saveRows" => (true, true, &[Read, Insert, Update, Delete]),
        _ => return None,
    };
    Some(Rule { is_mutating, has_csrf, permissions })
}

pub(super) fn run(visit: &Visit, action: &str, asked: &Asked) -> Result<Reply, Reply> {
    match action {
        "login-whoami" => Ok(who_am_i(visit, asked)),
        "query-getQueryDetails" => details(visit, asked),
        "query-getQuery" | "query-selectRows" => select::select(visit, asked),
        "query-saveRows" => save_rows(visit, asked),
        "query-insertRows" => change_rows(visit, "insert", asked),
        "query-updateRows" => change_rows(visit, "update", asked),
        _ => change_rows(visit, "delete", asked),
    }
}

fn who_am_i(visit: &Visit, asked: &Asked) -> Reply {
    let (token, is_new) = token(asked);
    let (id, name, email) = match visit.account {
        Account::Guest => (0, "guest", "guest"),
        Account::Known => (1005, "nvd-bot", USER),
    };
    let body = json!({
        "id": id, "displayName": name, "email": email, "CSRF": token, "impersonated": false, "success": true,
    });
    let reply = Reply::json(200, &body);
    if is_new { reply.with_token(token) } else { reply }
}

fn details(visit: &Visit, asked: &Asked) -> Result<Reply, Reply> {
    let parameters = asked.parameters();
    let parameter =
        |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default();
    let (schema, query) = (parameter("schemaName"), parameter("queryName"));
    if !schema.eq_ignore_ascii_case("lists") {
        return Err(not_found(&format!("Could not find the specified schema in the folder '{CONTAINER}'")));
    }
    let lists = visit.state.lists.lock().expect("lists");
    let list = lists
        .get(&query.to_lowercase())
        .ok_or_else(|| not_found(&format!("Could not find the specified query '{query}' in the schema '{schema}'")))?;
    let mut body = list.details();
    body["schemaName"] = json!("lists");
    let can_edit = visit.may(Permission::Insert);
    body["canEdit"] = json!(can_edit);
    Ok(Reply::json(200, &body))
}

/// One of the three that change rows of one list.
fn change_rows(visit: &Visit, command: &str, asked: &Asked) -> Result<Reply, Reply> {
    let request = json_of(asked)?;
    let (body, audits) = transact(visit, |transaction| transaction.command(command, request))?;
    note(visit, audits);
    Ok(Reply::json(200, &body))
}

/// Several changes in one transaction.
fn save_rows(visit: &Visit, asked: &Asked) -> Result<Reply, Reply> {
    let mut request = json_of(asked)?;
    let Some(commands) = request["commands"].as_array_mut().map(std::mem::take).filter(|all| !all.is_empty()) else {
        return Err(not_found("Empty request"));
    };
    let is_trial = request["validateOnly"] == json!(true);
    let run = |transaction: &mut Transaction| {
        transaction.is_trial = is_trial;
        let mut results = Vec::with_capacity(commands.len());
        for command in commands {
            let name = command["command"].as_str().unwrap_or_default().to_owned();
            if !["insert", "update", "delete"].contains(&name.as_str()) {
                return Err(illegal(&format!("No enum constant org.labkey.query.controllers.CommandType.{name}")));
            }
            results.push(transaction.command(&name, command)?);
        }
        Ok(results)
    };
    let (results, audits) = transact(visit, run)?;
    note(visit, audits);
    Ok(Reply::json(200, &json!({"result": results, "committed": !is_trial, "errorCount": 0})))
}

/// The lists while they are changed.
pub(super) struct Transaction<'a> {
    visit: &'a Visit<'a>,
    pub lists: &'a mut BTreeMap<String, List>,
    pub changes: Changes,
    audits: Vec<Audit>,
    /// Everything is taken back at the end.
    is_trial: bool,
}

/// Runs changes, and takes them back if one of them is refused.
pub(super) fn transact<T>(
    visit: &Visit,
    run: impl FnOnce(&mut Transaction) -> Result<T, Reply>,
) -> Result<(T, Vec<Audit>), Reply> {
    let mut lists = visit.state.lists.lock().expect("lists");
    let mut transaction =
        Transaction { visit, lists: &mut lists, changes: Changes::default(), audits: Vec::new(), is_trial: false };
    let result = run(&mut transaction);
    let Transaction { changes, audits, is_trial, .. } = transaction;
    if result.is_err() || is_trial {
        changes.undo(&mut lists);
    }
    result.map(|result| (result, if is_trial { Vec::new() } else { audits }))
}

/// Writes what was committed into the audit log.
pub(super) fn note(visit: &Visit, audits: Vec<Audit>) {
    visit.state.audits.lock().expect("audits").extend(audits);
}

impl Transaction<'_> {
    /// Notes the change, and answers with the number of the note, if the request asks for one.
    pub fn audit(&mut self, action: &str, behavior: Option<&str>, comment: Option<&str>, rows: usize) -> Option<i64> {
        if behavior.is_none_or(|behavior| behavior == "NONE") {
            return None;
        }
        if let Some(first) = self.audits.first_mut() {
            first.rows += rows;
            return Some(first.id);
        }
        let id = self.visit.state.next_audit();
        self.audits.push(Audit { id, action: action.to_owned(), comment: comment.map(str::to_owned), rows });
        Some(id)
    }

    fn command(&mut self, command: &str, mut request: Value) -> Result<Value, Reply> {
        let rows = match request.get_mut("rows").map(Value::take) {
            Some(Value::Array(rows)) if !rows.is_empty() => rows,
            _ => {
                let message = "No 'rows' array supplied.";
                let errors = json!([{"msg": message, "message": message}]);
                return Err(Reply::json(400, &json!({"errors": errors, "exception": message, "success": false})));
            }
        };
        let mut objects: Vec<Map<String, Value>> = Vec::with_capacity(rows.len());
        for (index, row) in rows.into_iter().enumerate() {
            let Value::Object(row) = row else { return Err(illegal(&format!("rows[{index}] is not an object."))) };
            objects.push(row);
        }
        let name = |member: &str| {
            request[member].as_str().ok_or_else(|| {
                Reply::exception(500, "org.json.JSONException", &format!("JSONObject[\"{member}\"] not found."))
            })
        };
        let (schema, query) = (name("schemaName")?, name("queryName")?);
        if !schema.eq_ignore_ascii_case("lists") {
            return Err(illegal(&format!("The schema '{schema}' does not exist.")));
        }
        let list = self
            .lists
            .get_mut(&query.to_lowercase())
            .ok_or_else(|| illegal(&format!("The query '{query}' in the schema '{schema}' does not exist.")))?;
        let permission = match command {
            "insert" => Permission::Insert,
            "update" => Permission::Update,
            _ => Permission::Delete,
        };
        if !self.visit.may(permission) {
            return Err(self.visit.forbidden());
        }
        let result = match permission {
            Permission::Insert => list.insert(&objects, &mut self.changes),
            Permission::Update => list.update(&objects, &mut self.changes),
            _ => list.delete(&objects, &mut self.changes),
        };
        let stored = result.map_err(|refusal| refused(refusal, schema, query))?;
        let width = if request["skipReselectRows"] == json!(true) { 1 } else { list.width() };
        let stored: Vec<_> = stored.iter().map(|row| list.object(&row[..width])).collect();
        let mut response = json!({
            "schemaName": schema,
            "queryName": query,
            "command": command,
            "containerPath": CONTAINER,
            "rows": stored,
            "rowsAffected": objects.len(),
        });
        let (behavior, comment) = (request["auditBehavior"].as_str(), request["auditUserComment"].as_str());
        if let Some(id) = self.audit(command, behavior, comment, objects.len()) {
            response["transactionAuditId"] = json!(id);
            response["reselectRowCount"] = json!(false);
        }
        Ok(response)
    }
}

fn json_of(asked: &Asked) -> Result<Value, Reply> {
    serde_json::from_slice(&asked.body).map_err(|error| Reply::html(400, &error.to_string()))
}

fn not_found(message: &str) -> Reply {
    Reply::exception(404, "org.labkey.api.view.NotFoundException", message)
}

fn illegal(message: &str) -> Reply {
    Reply::exception(500, "java.lang.IllegalArgumentException", message)
}

fn refused(refusal: Refusal, schema: &str, query: &str) -> Reply {
    match refusal {
        Refusal::Row { number, row, faults } => {
            let first = faults[0].1.clone();
            let errors: Vec<_> = faults
                .into_iter()
                .map(|(field, message)| json!({"id": field, "msg": message, "field": field, "message": message}))
                .collect();
            let error = json!({
                "errors": errors, "exception": first, "schemaName": schema, "queryName": query, "row": row,
                "rowNumber": number,
            });
            let body = json!({"errors": [error], "errorCount": 1, "exception": first, "success": false});
            Reply::json(400, &body)
        }
        Refusal::Database(message) => {
            let error = json!({"msg": message, "field": "form", "message": message, "severity": "Error"});
            Reply::json(400, &json!({"success": false, "exception": message, "errors": [error]}))
        }
        Refusal::NotFound => not_found("The existing row was not found."),
    }
}
