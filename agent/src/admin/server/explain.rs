//! What becomes of packets here. Changes nothing, so readers may ask, too.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State, rejection::JsonRejection},
    routing::post,
};

use super::{Refused, bad};
use crate::admin::{View, api};

/// The path, which is asked by `POST` because packets are long.
pub(super) const PATH: &str = "/explain";

/// Bytes of a question at most: as many packets as it may have, each as long as can be tried.
const BODY_MAX: usize = 8 << 20;

pub(super) fn route<V: View>() -> Router<Arc<V>> {
    Router::new()
        .route(PATH, post(explain::<V>))
        .layer(DefaultBodyLimit::max(BODY_MAX))
}

async fn explain<V: View>(
    State(view): State<Arc<V>>,
    order: Result<Json<api::ExplainOrder>, JsonRejection>,
) -> Result<Json<api::Explanations>, Refused> {
    let Json(order) = order.map_err(|error| bad(error.body_text()))?;
    let count = order.packets.len();
    if !(1..=api::EXPLAIN_MAX).contains(&count) {
        let most = api::EXPLAIN_MAX;
        return Err(bad(format!(
            "packets: must be from 1 to {most}, not {count}"
        )));
    }
    Ok(Json(view.explain(order).await?))
}
