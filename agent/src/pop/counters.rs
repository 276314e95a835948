//! Counters: plain numbers with a name and a line of help, for metrics.

/// Declares a struct of `u64` counters that can be walked with name and help.
macro_rules! counters {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $help:literal])+ $field:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[doc = $help])+ pub $field: u64,)+ }

        impl $name {
            /// Every counter: its name, what it counts, its value.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + use<> {
                [$((stringify!($field), concat!($($help),+).trim_ascii(), self.$field),)+].into_iter()
            }
        }
    };
}

pub(crate) use counters;

#[cfg(test)]
mod tests {
    counters! {
        /// For the test.
        Two {
            /// The first.
            one,
            /// The second
            /// in two lines.
            two,
        }
    }

    #[test]
    fn counters_are_walked_in_order_with_their_help() {
        let counters = Two { one: 1, two: 2 };
        let all: Vec<_> = counters.iter().collect();
        assert_eq!(
            all,
            [
                ("one", "The first.", 1),
                ("two", "The second in two lines.", 2)
            ]
        );
    }
}
