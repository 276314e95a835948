//! Capturing packets: the answer is a pcapng file, which comes as packets do.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use homing_common::{capture::SNAP_MAX, outcome::Outcome};
use serde::Deserialize;

use super::{Refused, bad};
use crate::{
    admin::{CaptureOrder, Captured, View, api, page::parse_protocol},
    datapath::beside::capture::Wanted,
};

/// The media type of the answer.
const PCAPNG: &str = "application/x-pcapng";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CaptureQuery {
    /// Labels of outcomes, with commas between them.
    outcome: Option<String>,
    client: Option<String>,
    service: Option<String>,
    protocol: Option<String>,
    count: Option<NonZeroU64>,
    duration_ms: Option<u64>,
    snap: Option<u32>,
}

pub(super) async fn begin<V: View>(
    State(view): State<Arc<V>>,
    query: Result<Query<CaptureQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(query) = query?;
    let Captured { number, pieces } = view.capture(order(&query)?).await?;
    let pieces = stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), pieces))
    });
    let body = Body::from_stream(pieces);
    let headers = [
        (header::CONTENT_TYPE, PCAPNG.to_owned()),
        (api::CAPTURE_NUMBER, number.to_string()),
    ];
    Ok((headers, body).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndQuery {
    /// Of the capture; none: of whichever there is.
    number: Option<u64>,
}

pub(super) async fn end<V: View>(
    State(view): State<Arc<V>>,
    query: Result<Query<EndQuery>, QueryRejection>,
) -> Result<Json<api::CaptureEnded>, Refused> {
    let Query(query) = query?;
    let ended = view.end_capture(query.number);
    Ok(Json(api::CaptureEnded { ended }))
}

fn order(query: &CaptureQuery) -> Result<CaptureOrder, Refused> {
    let snap = query.snap.unwrap_or(SNAP_MAX as u32);
    if !(1..=SNAP_MAX as u32).contains(&snap) {
        return Err(bad(format!(
            "snap: must be from 1 to {SNAP_MAX}, not {snap}"
        )));
    }
    let end = |name: &str, text: &Option<String>| {
        let end = text.as_deref().map(str::parse::<api::End>).transpose();
        end.map_err(|why| bad(format!("{name}: {why}")))
    };
    let (client, service) = (
        end("client", &query.client)?,
        end("service", &query.service)?,
    );
    if let (Some(client), Some(service)) = (client, service)
        && client.address.is_ipv4() != service.address.is_ipv4()
    {
        let why = format!("client {client} and service {service} are of different families");
        return Err(bad(why));
    }
    let protocol = query.protocol.as_deref().map(|text| {
        parse_protocol(text).ok_or_else(|| bad(format!("protocol: must be tcp or udp, not {text}")))
    });
    let outcomes = query.outcome.as_deref().map(|text| text.split(','));
    Ok(CaptureOrder {
        wanted: Wanted {
            outcomes: outcomes
                .into_iter()
                .flatten()
                .map(outcome)
                .collect::<Result<_, _>>()?,
            client: client.map(|end| end.address),
            client_port: client.and_then(|end| end.port),
            service: service.map(|end| end.address),
            service_port: service.and_then(|end| end.port),
            protocol: protocol.transpose()?,
            snap,
        },
        count: query.count,
        duration: query.duration_ms.map(Duration::from_millis),
    })
}

fn outcome(label: &str) -> Result<Outcome, Refused> {
    let named = Outcome::ALL.iter().find(|outcome| outcome.label() == label);
    named
        .copied()
        .ok_or_else(|| bad(format!("outcome: there is no {label}")))
}
