//! From the core to whom it concerns: answers to those who wait, the rest to the task of
//! the application's connection.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::SystemTime,
};

use homing_client::{seqpacket::Socket, wire::Closing};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;

use crate::migration::app::{
    AppId, Event, Failure,
    core::{Answer, Output},
    descriptor,
    handle::{State, TurnedAway},
};

/// What waits for the task of a connection, besides datagrams.
#[derive(Default)]
pub(in crate::migration::app) struct Mailboxes(HashMap<AppId, Mailbox>);

struct Mailbox {
    socket: Arc<Socket>,
    notify: Arc<Notify>,
    mail: VecDeque<Mail>,
}

/// One thing to do for the task of a connection.
pub(super) enum Mail {
    Tell(Event),
    Close(Closing, &'static str),
}

impl Mailboxes {
    /// A mailbox for a connection; the task waits for what this returns.
    pub fn open(&mut self, app: AppId, socket: Arc<Socket>) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let mailbox = Mailbox {
            socket,
            notify: Arc::clone(&notify),
            mail: VecDeque::new(),
        };
        self.0.insert(app, mailbox);
        notify
    }

    /// Whether the other end of a connection has closed, whatever is still to be read.
    fn is_hung_up(&self, app: AppId) -> bool {
        let Some(mailbox) = self.0.get(&app) else {
            return true;
        };
        // That much poll(2) always says.
        let mut polled = [PollFd::new(mailbox.socket.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).is_ok()
            && polled[0]
                .revents()
                .is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
    }

    /// Its task has ended.
    pub fn end(&mut self, app: AppId) {
        self.0.remove(&app);
    }

    pub(super) fn take(&mut self, app: AppId) -> Option<Mail> {
        self.0.get_mut(&app)?.mail.pop_front()
    }

    fn notify(&self, app: AppId) {
        if let Some(mailbox) = self.0.get(&app) {
            mailbox.notify.notify_one();
        }
    }

    fn put(&mut self, app: AppId, mail: Mail) {
        if let Some(mailbox) = self.0.get_mut(&app) {
            mailbox.mail.push_back(mail);
            mailbox.notify.notify_one();
        }
    }
}

impl State {
    /// Whether an application still is at its end of its connection. If not it is forgotten
    /// now, not once its connection's task sees that.
    pub fn is_there(&mut self, app: AppId) -> bool {
        let gone = self.mailboxes.is_hung_up(app);
        if gone {
            self.core.gone(app);
            self.dispatch();
        }
        !gone
    }

    /// Does what the core wants done. Whoever has used the core calls this before it lets
    /// go of the lock.
    pub fn dispatch(&mut self) {
        loop {
            if let Some(closed) = self.core.take_closed() {
                let at = SystemTime::now();
                self.turned_away = Some(TurnedAway { at, closed });
            }
            let outputs = self.core.take_outputs();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                match output {
                    Output::Send(app) => self.mailboxes.notify(app),
                    Output::Answer(number, answer) => self.answer(number, answer),
                    Output::Event(app, event) => self.event(app, event),
                    Output::Close(app, closing, text) => {
                        self.mailboxes.put(app, Mail::Close(closing, text));
                    }
                }
            }
        }
    }

    fn answer(&mut self, number: u64, answer: Result<Answer<OwnedFd>, Failure>) {
        let answer = answer.and_then(|answer| self.look_at(number, answer));
        let Some(waiting) = self.waiting.remove(&number) else {
            return;
        };
        // Nobody waits any more, so nobody would settle it.
        if let Err(Ok(answer)) = waiting.send(answer) {
            self.undo(number, answer);
        }
    }

    fn look_at(
        &mut self,
        number: u64,
        answer: Answer<OwnedFd>,
    ) -> Result<Answer<OwnedFd>, Failure> {
        let looked = match &answer {
            Answer::Exported {
                descriptor,
                session,
                ..
            } => descriptor::is_of(descriptor, session),
            Answer::Imported { descriptor, family } => descriptor::is_fresh(descriptor, *family),
            Answer::Kept | Answer::Adopted => Ok(()),
        };
        match looked {
            Ok(()) => Ok(answer),
            Err(why) => {
                self.core.count_wrong_descriptor();
                self.undo(number, answer);
                Err(Failure::Descriptor(why))
            }
        }
    }

    fn undo(&mut self, number: u64, answer: Answer<OwnedFd>) {
        // It fails where the application has gone meanwhile: nothing is left to undo.
        let _ = match answer {
            Answer::Exported { state, .. } => self.core.resume(number, Some(state)),
            Answer::Imported { .. } | Answer::Kept => self.core.drop_import(number),
            Answer::Adopted => Ok(()),
        };
    }

    fn event(&mut self, app: AppId, event: Event) {
        if let Event::Pending {
            left, descriptor, ..
        } = &event
            && descriptor::may_be_of(descriptor, &left.session).is_err()
        {
            self.core.count_wrong_descriptor();
            let why = "the descriptor of a pending move is of something else";
            self.core.close(app, Closing::Malformed, why);
            return;
        }
        self.mailboxes.put(app, Mail::Tell(event));
    }
}
