//! What is to be captured.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use axum::http::HeaderName;
use serde::{Deserialize, Serialize};

/// The header of an answer to `POST /capture` with the capture's number.
pub const CAPTURE_NUMBER: HeaderName = HeaderName::from_static("homing-capture");

/// `POST /capture/end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureEnded {
    /// Whether somebody captured.
    pub ended: bool,
}

/// An address, or an address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub address: IpAddr,
    /// The port; none: any.
    pub port: Option<u16>,
}

impl From<SocketAddr> for End {
    fn from(endpoint: SocketAddr) -> Self {
        Self {
            address: endpoint.ip().to_canonical(),
            port: Some(endpoint.port()),
        }
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(endpoint) = text.parse::<SocketAddr>() {
            return Ok(endpoint.into());
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self {
                address: address.to_canonical(),
                port: None,
            }),
            Err(_) => Err(format!(
                "not an address, or address and port, such as 198.51.100.7 or \
                 [2001:db8::7]:40312: {text}"
            )),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.address, port)),
            None => write!(f, "{}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_ports_or_none() {
        for text in [
            "198.51.100.7",
            "198.51.100.7:40312",
            "2001:db8::7",
            "[2001:db8::7]:443",
        ] {
            assert_eq!(text.parse::<End>().unwrap().to_string(), text);
        }
        let mapped: End = "::ffff:198.51.100.7".parse().unwrap();
        assert_eq!(mapped.to_string(), "198.51.100.7");
        assert!("198.51.100".parse::<End>().is_err());
    }
}
