//! A stand-in for LabKey Server: the part of its HTTP interface that reaches lists, in memory, on a real port.
//!
//! Written after the source of LabKey's platform (October 2024), down to its traps: CSRF is checked with API keys too,
//! a guest gets 200 from whoami, unknown columns and filters on unknown columns are ignored without a word, selects pass
//! through the list's default view, integers have 32 bits, import answers its failures with 200. No live server was at
//! hand. Every request is one transaction, also one that asks for none.
//!
//! ```ignore
//! let labkey = LabKeyServer::start().await;
//! labkey.add(List::keyed("hits", "RecordKey").column("SAMPLE", Kind::Text).column("READS", Kind::Integer));
//! labkey.inject("query-insertRows", Fault::DropAfter);
//! // ... the client at work at labkey.url, in CONTAINER, with KEY ...
//! assert_eq!(labkey.counts("hits", "SAMPLE"), BTreeMap::from([("S1".into(), 2)]));
//! ```

mod actions;
mod faults;
mod import;
mod lists;
mod select;
mod wire;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::{HeaderMap, Method};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

pub use self::faults::Fault;
pub use self::lists::{Kind, List};

/// The folder in which the lists are. The server knows no other one.
pub const CONTAINER: &str = "/NVD/Metagenomics";
/// The API key of the one account, which may read, insert, update and delete until [`LabKeyServer::permit`].
pub const KEY: &str = "apikey|0123456789abcdef";
/// The name by which the same account logs in with Basic authentication.
pub const USER: &str = "nvd-bot@example.org";
/// The password that goes with [`USER`].
pub const PASSWORD: &str = "correct horse";

/// What an account may do in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    Read,
    Insert,
    Update,
    Delete,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Controller and action, such as `query-insertRows`.
    pub action: String,
    pub method: Method,
    pub headers: HeaderMap,
    /// Empty when the connection was dropped before the body was read.
    pub body: Bytes,
    /// The fault that it met.
    pub fault: Option<Fault>,
    /// The status of the answer, also of one that never reached the client.
    pub status: Option<u16>,
}

impl Seen {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// An entry of the audit log: a transaction that was committed, and asked to be noted.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// The `transactionAuditId` of the answer.
    pub id: i64,
    pub action: String,
    /// The `auditUserComment` of the request.
    pub comment: Option<String>,
    pub rows: usize,
}

/// The server. It ends with this value.
pub struct LabKeyServer {
    /// What clients call the base URL.
    pub url: String,
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

/// What all connections share.
struct State {
    lists: Mutex<BTreeMap<String, List>>,
    access: Mutex<Access>,
    faults: Mutex<faults::Faults>,
    seen: Mutex<Vec<Seen>>,
    audits: Mutex<Vec<Audit>>,
    next_audit: AtomicI64,
    /// While true, connections are broken off.
    is_away: watch::Sender<bool>,
}

impl State {
    /// The number of the next note in the audit log.
    fn next_audit(&self) -> i64 {
        self.next_audit.fetch_add(1, Ordering::Relaxed)
    }
}

struct Access {
    is_revoked: bool,
    permissions: HashSet<Permission>,
}

impl LabKeyServer {
    /// A server without lists, on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let all = [Permission::Read, Permission::Insert, Permission::Update, Permission::Delete];
        let state = Arc::new(State {
            lists: Mutex::default(),
            access: Mutex::new(Access { is_revoked: false, permissions: HashSet::from(all) }),
            faults: Mutex::default(),
            seen: Mutex::default(),
            audits: Mutex::default(),
            next_audit: AtomicI64::new(9931),
            is_away: watch::Sender::new(false),
        });
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&shared)));
            }
        });
        Self { url: format!("http://{address}"), address, state, accepting }
    }

    /// Adds a list, or replaces the one of that name.
    pub fn add(&self, list: List) {
        self.state.lists.lock().expect("lists").insert(list.name().to_lowercase(), list);
    }

    /// Changes a list: its columns, or rows behind the client's back.
    pub fn change(&self, list: &str, change: impl FnOnce(&mut List)) {
        let mut lists = self.state.lists.lock().expect("lists");
        change(lists.get_mut(&list.to_lowercase()).expect("list"));
    }

    /// Removes a list with its rows.
    pub fn remove(&self, list: &str) {
        self.state.lists.lock().expect("lists").remove(&list.to_lowercase()).expect("list");
    }

    /// The rows of a list in the order of their keys, all columns in each.
    pub fn rows(&self, list: &str) -> Vec<Map<String, Value>> {
        self.state.lists.lock().expect("lists")[&list.to_lowercase()].objects()
    }

    /// How many rows hold each value of a column: each exactly once, if all are 1. Null is the empty text.
    pub fn counts(&self, list: &str, column: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for value in self.state.lists.lock().expect("lists")[&list.to_lowercase()].values(column) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            *counts.entry(if value.is_null() { String::new() } else { text }).or_default() += 1;
        }
        counts
    }

    /// All requests so far, in the order of their arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("seen").clone()
    }

    /// Forgets all requests so far.
    pub fn forget(&self) {
        self.state.seen.lock().expect("seen").clear();
    }

    /// The audit log.
    pub fn audits(&self) -> Vec<Audit> {
        self.state.audits.lock().expect("audits").clone()
    }

    /// Makes the next request of that action (`query-insertRows`) meet a fault; called again, the one after it.
    pub fn inject(&self, action: &str, fault: Fault) {
        self.state.faults.lock().expect("faults").inject(action, fault);
    }

    /// Asks at every request which fault it meets, after those of [`inject`](Self::inject).
    pub fn inject_with(&self, choose: impl FnMut(&Seen) -> Option<Fault> + Send + 'static) {
        self.state.faults.lock().expect("faults").choose_with(choose);
    }

    /// Breaks off all connections, and refuses new ones, until called with false.
    pub fn set_away(&self, is_away: bool) {
        self.state.is_away.send_replace(is_away);
    }

    /// Makes the API key and the password unknown.
    pub fn revoke(&self) {
        self.state.access.lock().expect("access").is_revoked = true;
    }

    /// Takes [`revoke`](Self::revoke) back.
    pub fn restore(&self) {
        self.state.access.lock().expect("access").is_revoked = false;
    }

    /// Sets what the account may do.
    pub fn permit(&self, permissions: &[Permission]) {
        self.state.access.lock().expect("access").permissions = permissions.iter().copied().collect();
    }
}

impl Drop for LabKeyServer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set_away(true);
    }
}

/// One connection, until its client, a fault or an absence of the server ends it.
async fn serve(socket: TcpStream, state: Arc<State>) {
    let mut away = state.is_away.subscribe();
    let broken = Arc::new(Notify::new());
    let service = TowerToHyperService::new(wire::router(state, Arc::clone(&broken)));
    let server = Builder::new(TokioExecutor::new());
    tokio::select! {
        // A client that goes away is not our fault.
        _ = server.serve_connection(TokioIo::new(socket), service) => {}
        () = broken.notified() => {}
        _ = away.wait_for(|is_away| *is_away) => {}
    }
}
