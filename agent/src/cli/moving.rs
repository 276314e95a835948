//! `homing move`: one session to another host.

use std::time::Duration;

use super::{Failure, args::MoveArgs, client::Agent};
use crate::admin::{
    api::{MoveOutcome, Moved},
    server::MOVED_WITHIN,
};

/// Longer than the agent gives itself.
const WITHIN: Duration = MOVED_WITHIN.saturating_add(Duration::from_secs(2));

/// Has a session moved, and waits for what comes of it.
pub(super) async fn move_session(agent: &Agent, args: &MoveArgs) -> Result<Moved, Failure> {
    let query = format!(
        "/move?client={}&service={}&to={}&deadline_ms={}",
        args.client,
        args.service,
        args.host,
        args.deadline.as_millis()
    );
    agent.post_within(&query, WITHIN).await
}

/// What came of it, in words.
pub(super) fn show(moved: &Moved) -> String {
    let name = &moved.name;
    let (client, service, target) = (name.client, name.service, moved.target);
    let session = format!("{client} > {service}");
    let (frozen, took) = (millis(moved.frozen_us), millis(moved.took_us));
    let mut why = moved.meaning.clone().unwrap_or_default();
    if let Some(detail) = &moved.detail {
        why += &format!(" ({detail})");
    }
    if let Some(step) = &moved.step {
        why += &format!(", while {step}");
    }
    match moved.outcome {
        MoveOutcome::Moved => {
            format!("{session} has moved to host {target} in {took}, standing still for {frozen}")
        }
        MoveOutcome::Refused => format!("{session} stays here, and was not touched: {why}"),
        MoveOutcome::Aborted => {
            format!("{session} goes on here after standing still for {frozen}: {why}")
        }
        MoveOutcome::Gone => format!("{session} has ended meanwhile: {why}"),
        MoveOutcome::Lost => format!("{session} is lost: {why}"),
    }
}

/// What keeps the exit code from being 0, once the answer is printed.
pub(super) fn judge(moved: &Moved) -> Result<(), Failure> {
    match moved.outcome {
        MoveOutcome::Moved => Ok(()),
        _ => Err(Failure::PrintedFailed),
    }
}

fn millis(us: u64) -> String {
    format!("{}.{:03} ms", us / 1_000, us % 1_000)
}
