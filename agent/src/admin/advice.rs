//! What an operator does about packets that end in an outcome, where something is to be
//! done.

use homing_common::outcome::Outcome;

/// What to do about packets that end so; none where all is well.
pub const fn advice(outcome: Outcome) -> Option<&'static str> {
    Some(match outcome {
        Outcome::NotIp
        | Outcome::NotService
        | Outcome::Fragment
        | Outcome::LocalSyn
        | Outcome::LocalSocket
        | Outcome::LocalCookie
        | Outcome::LocalClosed
        | Outcome::LocalFlow
        | Outcome::LocalFlowNew
        | Outcome::IcmpLocal
        | Outcome::FragmentLocal
        | Outcome::StrippedSocket
        | Outcome::StrippedSyn
        | Outcome::StrippedCookie
        | Outcome::StrippedClosed
        | Outcome::StrippedIcmp
        | Outcome::StrippedFragment
        | Outcome::StrippedFlow
        | Outcome::StrippedFlowNew
        | Outcome::Forwarded
        | Outcome::Redirected
        | Outcome::SentOn
        | Outcome::RendezvousSyn
        | Outcome::Rendezvous
        | Outcome::EchoAnswered
        | Outcome::FragmentGathered
        | Outcome::FragmentForwarded
        | Outcome::FragmentHeld
        | Outcome::Diverted
        | Outcome::Parked
        | Outcome::TooBigTold => return None,
        Outcome::Malformed | Outcome::TunnelMalformed => {
            "its headers contradict each other or its length: look at who sent it"
        }
        Outcome::Unknown | Outcome::StrippedUnknown => {
            "the local stack decides, and as a rule answers with a RST or not at all: that is \
             right for what belongs to no session"
        }
        Outcome::TooBig => {
            "raise the MTU of the fabric, or lower tunnel.mss so that clients send less at once \
             (`homing doctor`, check mtu)"
        }
        Outcome::NoWay => {
            "see the owner's NEXT HOP in `homing hosts`: its neighbour or its route is missing, or \
             it is no member"
        }
        Outcome::NoHeadroom => {
            "the driver leaves too little room before a frame: use another driver, or \
             host.xdp_mode = \"skb\""
        }
        Outcome::TunnelNotMember => {
            "if its outer source is a host of this POP, see `homing hosts` there and here; if not, \
             drop the tunnel network at the edge of the POP"
        }
        Outcome::TunnelNotService => {
            "the sender has a service that this host has not: bring the services of both into line"
        }
        Outcome::TunnelNested => {
            "a tunnel packet is never sent within another: look at who sent it"
        }
        Outcome::TunnelHops | Outcome::TunnelAgain => {
            "hosts disagree about its owner for a moment; if it stays so, compare `homing owner` on \
             the hosts that it passed"
        }
        Outcome::TunnelBounce => {
            "the sender holds this host for the owner, and this host the sender: compare `homing \
             owner` on both; the client sends again, and claims settle it within a moment"
        }
        Outcome::TunnelUnready => {
            "neither host can know its owner yet: both drain, have not synced, or have no agent; \
             see `homing status` on both"
        }
        Outcome::TunnelStray => {
            "a move that was given up sent it here; the client sends again. If it stays so, see the \
             log of the host that sent it"
        }
        Outcome::RendezvousNone => {
            "no other host takes new sessions: see `homing hosts`, and `homing undrain` if all are \
             drained"
        }
        Outcome::Asked => {
            "the agent asks the POP, and the packet goes on to whoever has the session; nobody: it \
             is dropped, and reset when it comes again"
        }
        Outcome::AskTooLong | Outcome::ParkTooLong => {
            "the POP is asked all the same, and what the client sends again finds its way"
        }
        Outcome::AskLimitedSource => {
            "one source sends too much that belongs to nobody: a flood, or a client whose sessions \
             all died; what is sent again later is asked about"
        }
        Outcome::AskLimited => {
            "too much comes at once that belongs to nobody: a flood, or routes that have changed \
             before this host was in sync (`homing status`)"
        }
        Outcome::AskFull | Outcome::ParkFull => {
            "the agent does not read fast enough: see whether it runs, and what the processor is \
             busy with"
        }
        Outcome::EchoRefused => {
            "hosts have different keys, or somebody forges: compare the keys in `homing hosts`"
        }
        Outcome::EchoLimited => "a member asks too often: see its log and version",
        Outcome::OwnerUnsure => {
            "the table of owners was being written just then; the client sends again. If it stays \
             so, restart the agent"
        }
        Outcome::FragmentLimited => {
            "too many fragments come before the first of their datagram: as a rule a flood"
        }
        Outcome::FragmentTiny => "a fragment that hides or overlaps headers: as a rule an attack",
        Outcome::FragmentUnknown => {
            "the session's owner is not known; the client sends again, and segments that are no \
             fragments are asked about"
        }
        Outcome::MovingFragment => {
            "the client sends again; a moment later the session is served where it has moved to"
        }
    })
}

#[cfg(test)]
mod tests {
    use homing_common::outcome::Verdict;

    use super::*;

    #[test]
    fn what_is_dropped_has_advice_unless_it_is_held() {
        for outcome in Outcome::ALL {
            let held = matches!(outcome, Outcome::FragmentHeld | Outcome::Parked);
            if outcome.verdict() == Verdict::Drop && !held {
                assert!(advice(*outcome).is_some(), "{}", outcome.label());
            }
            // A sentence's end, as the lines around it have none.
            let text = advice(*outcome).unwrap_or_default();
            assert!(!text.ends_with('.') && !text.contains("  "), "{text}");
        }
    }
}
