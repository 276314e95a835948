//! `homing top`: this host, its agent and its POP on a full screen, live.
//!
//! [`model`] is what is known and what the keys have chosen: no terminal, no socket, no clock.
//! [`view`] draws it into a buffer of any size. [`terminal`] is the terminal, which it gives
//! back as it found it, whatever happens. What is here asks, waits, and passes on.

mod keys;
mod model;
mod terminal;
mod view;

use std::{future::Future, io::IsTerminal as _, pin::Pin, time::Duration};

use anyhow::{Context as _, anyhow};
use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep_until};

use super::{
    Failure, Output,
    client::Agent,
    now_unix_ms,
    watch::{ANSWER_WITHIN, Stop},
};
use crate::admin::api::Watch;
use model::{Asking, Model};
use terminal::Terminal;

/// How often the picture is drawn when nothing happens: its age changes.
const DRAW_EVERY: Duration = Duration::from_millis(500);

/// What the agent is being asked.
type Question<'a> = Pin<Box<dyn Future<Output = Result<Watch, Failure>> + 'a>>;

/// Shows the picture until it is quit.
pub(super) async fn top(agent: &Agent, interval: Duration, view: &Output) -> Result<(), Failure> {
    if view.json || !std::io::stdout().is_terminal() {
        return Err(anyhow!(
            "cannot show the screen of `homing top`: {}; use `homing stats --watch`, or for \
             scripts `homing stats --watch --json`",
            match view.json {
                true => "it has no JSON",
                false => "the standard output is not a terminal",
            }
        )
        .into());
    }
    // Before the terminal is changed: from here on no signal ends the process.
    let mut stop = Stop::new()?;
    let ask = || agent.get_within::<Watch>("/watch", ANSWER_WITHIN);
    let first = tokio::select! {
        first = ask() => first?,
        () = stop.wait() => return Ok(()),
    };
    let mut terminal = Terminal::take().context(
        "cannot take the terminal for `homing top`; `homing stats --watch` asks less of it",
    )?;
    let begun = Instant::now();
    let mut model = Model::new(interval);
    model.answered(first, begun.elapsed());
    let mut events = EventStream::new();
    let mut question: Option<Question<'_>> = None;
    while !model.has_quit() {
        if question.is_none() && model.asking(begun.elapsed()) == Asking::Now {
            model.asked(begun.elapsed());
            question = Some(Box::pin(ask()));
        }
        let drawn = terminal.draw(|frame| {
            let (now, buffer) = (begun.elapsed(), frame.buffer_mut());
            view::draw(&model, now, now_unix_ms(), buffer)
        });
        // One that takes nothing at the moment may do so later, and is no reason not to
        // hear what ends this.
        if let Some(extent) = drawn.context("cannot draw on the terminal")?.flatten() {
            model.drawn(extent);
        }
        let now = Instant::now();
        let wake = match model.asking(begun.elapsed()) {
            Asking::After(wait) if question.is_none() => now + wait.min(DRAW_EVERY),
            _ => now + DRAW_EVERY,
        };
        tokio::select! {
            biased;
            () = stop.wait() => return Ok(()),
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) => {
                    keys::press(key).into_iter().for_each(|press| model.press(press));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    return Err(anyhow!(error).context("cannot read keys from the terminal").into());
                }
                None => return Ok(()),
            },
            answer = answered(&mut question) => {
                question = None;
                match answer {
                    Ok(watch) => model.answered(watch, begun.elapsed()),
                    Err(failure) => model.failed(failure.to_string()),
                }
            }
            () = sleep_until(wake) => {}
        }
    }
    Ok(())
}

/// The answer to the question that is asked; never returns while none is.
async fn answered(question: &mut Option<Question<'_>>) -> Result<Watch, Failure> {
    match question {
        Some(question) => question.await,
        None => std::future::pending().await,
    }
}
