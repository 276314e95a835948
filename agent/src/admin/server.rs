//! HTTP on the admin sockets. On the one for reading every `POST` is refused but that which
//! explains packets.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET /status` | [`api::Status`] |
//! | `GET /hosts` | [`api::Hosts`] |
//! | `GET /sessions?limit=&after=` | [`api::Sessions`] |
//! | `GET /owner?client=&service=&protocol=` | [`api::Owner`] |
//! | `POST /explain`, an [`api::ExplainOrder`] | [`api::Explanations`] |
//! | `POST /capture?outcome=&client=&service=&protocol=&count=&duration_ms=&snap=` | a pcapng file |
//! | `POST /capture/end?number=` | [`api::CaptureEnded`] |
//! | `GET /carriers` | [`api::Carriers`] |
//! | `GET /apps` | [`api::Apps`] |
//! | `GET /mux` | [`api::Mux`] |
//! | `GET /stats` | [`api::Stats`] |
//! | `GET /watch` | [`api::Watch`] |
//! | `GET /log`, `POST /log?level=` | [`api::Log`] |
//! | `GET /metrics` | Prometheus text |
//! | `GET /healthz` | [`api::Health`], 503 when not healthy |
//! | `POST /leave?hold_ms=` | [`api::Leaving`], 202 |
//! | `GET /config` | [`api::InForce`] |
//! | `POST /reload?dry_run=` | [`api::Reloaded`]; 409 if it needs a restart, 422 if the file is wrong |
//! | `GET /drain`, `POST /drain?move=&to=&rate=&deadline_ms=&wait=&force=`, `POST /undrain` | [`api::Drain`] |
//! | `POST /move?client=&service=&protocol=&to=&deadline_ms=` | [`api::Moved`] |
//!
//! Any other status comes with an [`api::Failure`].

mod capture;
mod drain;
mod explain;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use homing_common::session::Tuple;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use serde::Deserialize;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::{
    Refusal, View, api, metrics,
    page::{MAX_LIMIT, parse_cursor, parse_protocol},
    socket::{AdminSocket, Rights},
};

use crate::config::Problems;

pub use drain::MOVED_WITHIN;

/// How long the agent may take for an answer.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long a reload may take for its answer: groups and files may lie on other machines.
pub const RELOADED_WITHIN: Duration = Duration::from_secs(45);

/// Connections that are served at the same time; more wait to be accepted.
pub const MAX_CONNECTIONS: usize = 64;

/// How long a client may take for a request, or wait before the next one, until
/// its connection is closed.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// How long a graceful stop waits for answers that are under way.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// Sessions on a page when the request does not say.
const DEFAULT_LIMIT: usize = 100;

/// Serves until `stop` is ready; then answers what is under way, for a bounded
/// time, and removes the socket.
pub async fn serve<V: View>(socket: AdminSocket, view: Arc<V>, stop: impl Future<Output = ()>) {
    let (listener, _file, rights) = socket.into_parts();
    let service = TowerToHyperService::new(router(view, rights));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(ASK_WITHIN);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let slot = Arc::clone(&slots).acquire_owned();
        let (stream, slot) = tokio::select! {
            accepted = accept(&listener, slot) => accepted,
            () = &mut stop => break,
        };
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a client of the admin socket went away");
            }
            drop(slot);
        });
    }
    let _ = tokio::time::timeout(DRAIN_WITHIN, graceful.shutdown()).await;
}

/// The next connection, once there is a slot for it.
async fn accept<S, E: std::fmt::Debug>(
    listener: &UnixListener,
    slot: impl Future<Output = Result<S, E>>,
) -> (UnixStream, S) {
    let slot = slot.await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) => {
                // Out of descriptors, most likely: it would fail again at once.
                tracing::warn!(
                    %error,
                    fix = "if it goes on: raise LimitNOFILE= of the unit; tried again in 1 s",
                    "cannot accept on an admin socket"
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn router<V: View>(view: Arc<V>, rights: Rights) -> Router {
    let router = Router::new()
        .route("/status", get(status::<V>))
        .route("/hosts", get(hosts::<V>))
        .route("/sessions", get(sessions::<V>))
        .route("/owner", get(owner::<V>))
        .route("/carriers", get(carriers::<V>))
        .route("/apps", get(apps::<V>))
        .route("/mux", get(mux::<V>))
        .route("/stats", get(stats::<V>))
        .route("/watch", get(watch::<V>))
        .route("/log", get(log::<V>).post(set_log::<V>))
        .route("/metrics", get(metrics::<V>))
        .route("/healthz", get(healthz::<V>))
        .route("/leave", post(leave::<V>))
        .route("/config", get(config::<V>))
        .route("/drain", get(drain::get::<V>).post(drain::begin::<V>))
        .route("/capture", post(capture::begin::<V>))
        .route("/capture/end", post(capture::end::<V>))
        .route("/undrain", post(drain::end::<V>))
        .merge(explain::route::<V>())
        .route_layer(middleware::from_fn(in_time))
        .merge(drain::moves::<V>())
        .route("/reload", post(reload::<V>))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(view);
    match rights {
        Rights::Change => router,
        Rights::Read => router.layer(middleware::from_fn(only_read)),
    }
}

/// Lets nobody change anything.
async fn only_read(request: Request, next: Next) -> Response {
    let asks = request.method() == Method::GET || request.method() == Method::HEAD;
    if asks || request.uri().path() == explain::PATH {
        return next.run(request).await;
    }
    let why = "this socket is for reading (admin.readers): changes go by admin.socket, whose \
               users are admin.group";
    Refused::new(StatusCode::FORBIDDEN, why.to_owned()).into_response()
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the agent has not answered within {ANSWER_WITHIN:?}; see its log"),
        )
        .into_response(),
    }
}

async fn status<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Status>, Refused> {
    Ok(Json(view.status().await?))
}

async fn hosts<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Hosts>, Refused> {
    let hosts = view.hosts().await?;
    Ok(Json(api::Hosts { hosts }))
}

async fn carriers<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Carriers>, Refused> {
    Ok(Json(view.carriers().await?))
}

async fn apps<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Apps>, Refused> {
    Ok(Json(view.apps().await?))
}

async fn mux<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Mux>, Refused> {
    Ok(Json(view.mux().await?))
}

async fn stats<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Stats>, Refused> {
    Ok(Json(view.stats().await?))
}

async fn watch<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Watch>, Refused> {
    Ok(Json(api::Watch {
        status: view.status().await?,
        hosts: view.hosts().await?,
        stats: view.stats().await?,
    }))
}

async fn log<V: View>(State(view): State<Arc<V>>) -> Json<api::Log> {
    Json(view.log())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    level: String,
}

async fn set_log<V: View>(
    State(view): State<Arc<V>>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Json<api::Log>, Refused> {
    let Query(query) = query?;
    let set = view.set_log(&query.level);
    set.map_err(|why| bad(format!("level: {why}")))?;
    Ok(Json(view.log()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionsQuery {
    limit: Option<usize>,
    after: Option<String>,
}

async fn sessions<V: View>(
    State(view): State<Arc<V>>,
    query: Result<Query<SessionsQuery>, QueryRejection>,
) -> Result<Json<api::Sessions>, Refused> {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(bad(format!(
            "limit: must be from 1 to {MAX_LIMIT}, not {limit}"
        )));
    }
    let after = query.after.map(|text| {
        parse_cursor(&text).ok_or_else(|| bad("after: must be what `next` said".to_owned()))
    });
    Ok(Json(view.sessions(after.transpose()?, limit).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnerQuery {
    client: String,
    service: String,
    protocol: Option<String>,
}

async fn owner<V: View>(
    State(view): State<Arc<V>>,
    query: Result<Query<OwnerQuery>, QueryRejection>,
) -> Result<Json<api::Owner>, Refused> {
    let Query(query) = query?;
    let session = session(&query.client, &query.service, query.protocol.as_deref())?;
    Ok(Json(view.owner(session).await?))
}

/// A session by its ends.
fn session(client: &str, service: &str, protocol: Option<&str>) -> Result<Tuple, Refused> {
    let client = endpoint("client", client)?;
    let service = endpoint("service", service)?;
    if client.is_ipv4() != service.is_ipv4() {
        let why = format!("client {client} and service {service} are of different families");
        return Err(bad(why));
    }
    let protocol = protocol.unwrap_or("tcp");
    let protocol = parse_protocol(protocol)
        .ok_or_else(|| bad(format!("protocol: must be tcp or udp, not {protocol}")))?;
    Ok(Tuple::between(client, service, protocol))
}

fn endpoint(name: &str, text: &str) -> Result<SocketAddr, Refused> {
    let endpoint: SocketAddr = text.parse().map_err(|_| {
        let example = "198.51.100.7:40312 or [2001:db8::7]:40312";
        bad(format!(
            "{name}: must be an address and port, such as {example}, not {text}"
        ))
    })?;
    // The kernel side knows an IPv4-mapped address only as IPv4.
    Ok(SocketAddr::new(
        endpoint.ip().to_canonical(),
        endpoint.port(),
    ))
}

async fn metrics<V: View>(
    State(view): State<Arc<V>>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Refused> {
    let snapshot = metrics::Snapshot {
        status: view.status().await?,
        hosts: view.hosts().await?,
        stats: view.stats().await?,
    };
    let text = metrics::openmetrics(snapshot);
    let wanted = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    Ok(
        if wanted.is_some_and(|v| v.contains("application/openmetrics-text")) {
            ([(header::CONTENT_TYPE, metrics::OPENMETRICS)], text)
        } else {
            (
                [(header::CONTENT_TYPE, metrics::TEXT)],
                metrics::to_text(&text),
            )
        },
    )
}

async fn healthz<V: View>(
    State(view): State<Arc<V>>,
) -> Result<(StatusCode, Json<api::Health>), Refused> {
    let health = view.health().await?;
    let status = if health.healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    Ok((status, Json(health)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaveQuery {
    hold_ms: Option<u64>,
}

async fn leave<V: View>(
    State(view): State<Arc<V>>,
    query: Result<Query<LeaveQuery>, QueryRejection>,
) -> Result<(StatusCode, Json<api::Leaving>), Refused> {
    let Query(query) = query?;
    view.leave(query.hold_ms.map(Duration::from_millis)).await?;
    Ok((StatusCode::ACCEPTED, Json(api::Leaving { leaving: true })))
}

async fn config<V: View>(State(view): State<Arc<V>>) -> Json<api::InForce> {
    Json(view.config())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadQuery {
    #[serde(default)]
    dry_run: bool,
}

async fn reload<V: View>(
    State(view): State<Arc<V>>,
    query: Result<Query<ReloadQuery>, QueryRejection>,
) -> Result<Json<api::Reloaded>, Refused> {
    let Query(query) = query?;
    match tokio::time::timeout(RELOADED_WITHIN, view.reload(query.dry_run)).await {
        Ok(reloaded) => Ok(Json(reloaded?)),
        Err(_) => Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "the reload has taken longer than {RELOADED_WITHIN:?} and goes on; the agent's log \
                 says how it ends"
            ),
        )),
    }
}

async fn no_such_path(request: Request) -> Refused {
    const KNOWN: &str = "/status /hosts /sessions /owner /explain /capture /capture/end /carriers /apps /mux /stats /watch /log /metrics /healthz /leave \
         /config /reload /drain /undrain /move";
    let path = request.uri().path();
    Refused::new(
        StatusCode::NOT_FOUND,
        format!("there is no {path}; there are {KNOWN}"),
    )
}

async fn no_such_method(request: Request) -> Refused {
    let why = format!(
        "{} does not take {}",
        request.uri().path(),
        request.method()
    );
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, why)
}

/// An answer that is not a success.
struct Refused {
    status: StatusCode,
    failure: api::Failure,
}

impl Refused {
    fn new(status: StatusCode, error: String) -> Self {
        let failure = api::Failure {
            error,
            ..api::Failure::default()
        };
        Self { status, failure }
    }
}

fn bad(error: String) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, error)
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        bad(rejection.body_text())
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Restart { .. } => StatusCode::CONFLICT,
            Refusal::Config(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut refused = Self::new(status, refusal.to_string());
        match refusal {
            Refusal::Config(Problems { path, list }) => {
                let problems = list.into_iter().map(|problem| api::Problem {
                    path: path.clone(),
                    line: problem.line,
                    key: problem.key,
                    what: problem.what,
                    fix: problem.fix,
                });
                refused.failure.problems = problems.collect();
            }
            Refusal::Restart { changes, .. } => {
                refused.failure.changes = changes.iter().map(api::Change::of).collect();
            }
            _ => {}
        }
        refused
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(self.failure)).into_response()
    }
}
