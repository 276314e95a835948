use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// A message with what it borrows.
#[derive(Clone, Debug)]
struct Sample {
    message: Message<'static>,
    text: String,
    part: Vec<u8>,
}

impl Sample {
    fn message(&self) -> Message<'_> {
        let mut message: Message<'_> = self.message.clone();
        match &mut message {
            Message::Refuse { text, .. } | Message::Closing { text, .. } => *text = &self.text,
            Message::State {
                total,
                offset,
                part,
                ..
            } => {
                *part = &self.part;
                let len = self.part.len() as u32;
                *total = len + *offset + u32::from(len > 0) * (*total % 7);
                if len == 0 {
                    (*total, *offset) = (0, 0);
                }
            }
            _ => {}
        }
        message
    }
}

fn endpoint(v4: bool) -> impl Strategy<Value = SocketAddr> {
    (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(bytes, port)| {
        let address = if v4 {
            IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
        } else {
            IpAddr::from(bytes)
        };
        canonical(SocketAddr::new(address, port))
    })
}

fn connection() -> impl Strategy<Value = Connection> {
    any::<bool>()
        .prop_flat_map(|v4| (endpoint(v4), endpoint(v4)))
        .prop_filter("of one family", |(client, service)| {
            client.is_ipv4() == service.is_ipv4()
        })
        .prop_map(|(client, service)| Connection { client, service })
}

fn message() -> impl Strategy<Value = Message<'static>> {
    let number = any::<u64>();
    let services = vec(any::<bool>().prop_flat_map(endpoint), 1..=SERVICES_MAX);
    prop_oneof![
        ("[a-z/ ü]{1,32}", any::<u32>(), services).prop_map(|(name, version, services)| {
            Message::Register {
                protocol: Protocol { name, version },
                services,
            }
        }),
        (
            number,
            select(vec![Pending::Export, Pending::Import, Pending::Kept]),
            connection()
        )
            .prop_map(|(number, pending, connection)| Message::Pending {
                number,
                pending,
                connection
            }),
        Just(Message::Ready),
        number.prop_map(|number| Message::Exported { number }),
        number.prop_map(|number| Message::Imported { number }),
        number.prop_map(|number| Message::Kept { number }),
        number.prop_map(|number| Message::Adopted { number }),
        (number, select(Reason::ALL)).prop_map(|(number, reason)| Message::Refuse {
            number,
            reason,
            text: ""
        }),
        (number, any::<u32>(), 0..BLOB_CEILING).prop_map(|(number, total, offset)| {
            Message::State {
                number,
                total,
                offset,
                part: &[],
            }
        }),
        (any::<u32>(), any::<u16>()).prop_map(|(blob_max, moves_max)| Message::Registered {
            blob_max,
            moves_max
        }),
        select(Closing::ALL).prop_map(|closing| Message::Closing { closing, text: "" }),
        (number, any::<u32>(), connection()).prop_map(|(number, within_ms, connection)| {
            Message::Export {
                number,
                within_ms,
                connection,
            }
        }),
        number.prop_map(|number| Message::Committed { number }),
        (number, any::<bool>()).prop_map(|(number, state)| Message::Resume { number, state }),
        (number, any::<u32>(), any::<bool>(), connection()).prop_map(
            |(number, within_ms, wide, connection)| Message::Import {
                number,
                within_ms,
                family: if wide {
                    Family::V6
                } else {
                    Family::of(connection.client.ip())
                },
                connection,
            }
        ),
        number.prop_map(|number| Message::Adopt { number }),
        number.prop_map(|number| Message::Drop { number }),
    ]
}

fn sample() -> impl Strategy<Value = Sample> {
    let parts = prop_oneof![vec(any::<u8>(), 0..64), Just(vec![7; PART_MAX])];
    (message(), "[ -~]{0,255}", parts).prop_map(|(message, text, part)| Sample {
        message,
        text,
        part,
    })
}

proptest! {
    #[test]
    fn a_message_comes_back_as_it_was(sample in sample()) {
        let message = sample.message();
        let datagram = message.encode();
        prop_assert!(datagram.len() <= MESSAGE_MAX);
        prop_assert_eq!(Message::decode(&datagram), Ok(message));
    }

    /// Cut anywhere, or with a byte more, it is none.
    #[test]
    fn a_message_that_is_cut_or_longer_is_none(sample in sample()) {
        let mut datagram = sample.message().encode();
        let step = 1 + datagram.len() / 512;
        for len in (0..datagram.len()).step_by(step) {
            prop_assert!(Message::decode(&datagram[..len]).is_err(), "{len}");
        }
        datagram.push(0);
        prop_assert!(Message::decode(&datagram).is_err());
    }

    /// What decodes is the only form of its message.
    #[test]
    fn a_changed_message_is_none_or_another_ones_only_form(
        sample in sample(), at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let mut datagram = sample.message().encode();
        let at = at.index(datagram.len());
        datagram[at] = to;
        if let Ok(message) = Message::decode(&datagram) {
            prop_assert_eq!(message.encode(), datagram);
        }
    }

    #[test]
    fn garbage_is_decoded_without_a_panic(mut bytes in vec(any::<u8>(), 0..400), kind in 0u8..48) {
        let _ = Message::decode(&bytes);
        // With a header that is right, to get further.
        if bytes.len() >= HEADER_LEN {
            let body_len = (bytes.len() - HEADER_LEN) as u32;
            bytes[..4].copy_from_slice(&[VERSION, kind, 0, 0]);
            bytes[4..8].copy_from_slice(&body_len.to_be_bytes());
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}

#[test]
fn another_version_is_named_whatever_follows() {
    for rest in [&[0u8; 3][..], &[0xff; 40]] {
        let datagram = [&[9], rest].concat();
        assert_eq!(Message::decode(&datagram), Err(Wrong::Version(9)));
    }
}

/// The examples of `docs/migration.md`.
#[test]
fn messages_have_the_bytes_that_are_documented() {
    let connection = Connection::new(
        "198.51.100.7:40312".parse().unwrap(),
        "203.0.113.10:443".parse().unwrap(),
    );
    let register = Message::Register {
        protocol: Protocol::new("line-echo", 1),
        services: vec![connection.service],
    };
    let export = Message::Export {
        number: 0x0102_0304_0506_0708,
        within_ms: 1000,
        connection,
    };
    let part = Message::State {
        number: 0x0102_0304_0506_0708,
        total: 3,
        offset: 0,
        part: b"abc",
    };
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/migration.md"))
            .expect("docs/migration.md");
    let page: String = page.split_whitespace().collect();
    for message in [register, export, part] {
        let hex: String = message
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(page.contains(&hex), "{message:?}: {hex}");
    }
}
