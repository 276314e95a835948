//! Draining, and moves of single sessions.

use std::{collections::BTreeSet, num::NonZeroU32, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    routing::post,
};
use homing_common::host::{HostId, MAX_HOSTS};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{Refused, bad, session};
use crate::{
    admin::{DrainOrder, View, api},
    migration::drain::Wanted,
};

/// How long a move may take until it is certain what came of it: its deadline, then the
/// time that a target may be in doubt, and what that takes.
pub const MOVED_WITHIN: Duration = MOVE_DEADLINE_MAX.saturating_add(Duration::from_secs(60));

/// The longest deadline of a move.
const MOVE_DEADLINE_MAX: Duration = Duration::from_secs(60);
/// The deadline of a move whose request does not say.
const MOVE_DEADLINE: Duration = Duration::from_secs(10);

/// Moves that are waited for at the same time, so that there is always room for other
/// questions.
const MOVES_MAX: usize = 16;

pub(super) async fn get<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Drain>, Refused> {
    Ok(Json(view.drain().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainQuery {
    #[serde(rename = "move")]
    moves: Option<bool>,
    to: Option<String>,
    rate: Option<NonZeroU32>,
    deadline_ms: Option<u64>,
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    force: bool,
}

pub(super) async fn begin<V: View>(
    State(view): State<Arc<V>>,
    query: Result<Query<DrainQuery>, QueryRejection>,
) -> Result<Json<api::Drain>, Refused> {
    let Query(query) = query?;
    let order = DrainOrder {
        wanted: Wanted {
            to: query.to.as_deref().map(hosts).transpose()?,
            rate: query.rate,
            deadline: query.deadline_ms.map(Duration::from_millis),
            wait: query.wait,
        },
        moves: query.moves.unwrap_or(true),
        force: query.force,
    };
    Ok(Json(view.begin_drain(order).await?))
}

pub(super) async fn end<V: View>(State(view): State<Arc<V>>) -> Result<Json<api::Drain>, Refused> {
    Ok(Json(view.end_drain().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveQuery {
    client: String,
    service: String,
    protocol: Option<String>,
    to: String,
    deadline_ms: Option<u64>,
}

/// The one request that may take long: it waits for the end of a move.
pub(super) fn moves<V: View>() -> Router<Arc<V>> {
    let slots = Arc::new(Semaphore::new(MOVES_MAX));
    let answer = async move |State(view): State<Arc<V>>,
                             query: Result<Query<MoveQuery>, QueryRejection>| {
        move_session(&*view, query?.0, &slots).await
    };
    Router::new().route("/move", post(answer))
}

async fn move_session<V: View>(
    view: &V,
    query: MoveQuery,
    slots: &Semaphore,
) -> Result<Json<api::Moved>, Refused> {
    let session = session(&query.client, &query.service, query.protocol.as_deref())?;
    let target = host(&query.to)?;
    let within = query
        .deadline_ms
        .map_or(MOVE_DEADLINE, Duration::from_millis);
    if within.is_zero() || within > MOVE_DEADLINE_MAX {
        let most = MOVE_DEADLINE_MAX.as_millis();
        return Err(bad(format!("deadline_ms: must be from 1 to {most}")));
    }
    let Ok(_slot) = slots.try_acquire() else {
        let why = format!("{MOVES_MAX} moves are being waited for; `homing drain` moves many");
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, why));
    };
    let moved = view.move_session(session, target, within);
    match tokio::time::timeout(MOVED_WITHIN, moved).await {
        Ok(moved) => Ok(Json(moved?)),
        Err(_) => Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("it is not known what came of the move within {MOVED_WITHIN:?}"),
        )),
    }
}

/// Hosts by their ids, with commas between them.
fn hosts(text: &str) -> Result<BTreeSet<HostId>, Refused> {
    text.split(',').map(host).collect()
}

fn host(text: &str) -> Result<HostId, Refused> {
    let number: Option<u16> = text.parse().ok();
    number
        .and_then(|number| HostId::try_from(number).ok())
        .ok_or_else(|| {
            let most = MAX_HOSTS - 1;
            bad(format!("to: must be host ids from 1 to {most}, not {text}"))
        })
}
