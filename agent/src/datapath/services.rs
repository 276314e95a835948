//! `SERVICES`: what the POP answers for.

use std::{collections::BTreeSet, io, os::fd::AsFd as _};

use aya::maps::{HashMap, IterableMap as _, Map, MapData};
use homing_common::{
    maps::SERVICES_ENTRIES,
    net::{Address, Port, Service},
};

use super::{map_io, sys};

/// The services as the kernel side sees them.
pub struct Services {
    map: HashMap<MapData, Service, u32>,
}

/// What [`Services::sync`] changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Synced {
    /// Services that are new.
    pub added: usize,
    /// Services that are no longer.
    pub removed: usize,
}

impl Services {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        let map = HashMap::try_from(map).map_err(map_io)?;
        Ok(Self { map })
    }

    /// Makes the map hold exactly `wanted`, and an entry without port and protocol for
    /// each address among them: of most fragments of a datagram no more is to be seen
    /// than whether the address is a service's. No service that stays is ever missing. What
    /// is new is added before what is no longer is removed, unless there is room only in
    /// the other order.
    pub fn sync(&mut self, wanted: &[Service]) -> io::Result<Synced> {
        let addresses = wanted.iter().map(|service| address_of(service.address));
        let wanted: BTreeSet<_> = wanted.iter().copied().chain(addresses).collect();
        let present = self.entries()?;
        let mut synced = Synced::default();
        let fits = present.union(&wanted).count() <= SERVICES_ENTRIES as usize;
        if !fits {
            self.remove(present.difference(&wanted), &mut synced)?;
        }
        for service in wanted.difference(&present) {
            self.map
                .insert(service, PRESENT, 0)
                .map_err(|error| name(map_io(error), service))?;
            synced.added += usize::from(!is_address(service));
        }
        if fits {
            self.remove(present.difference(&wanted), &mut synced)?;
        }
        Ok(synced)
    }

    fn remove<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Service>,
        synced: &mut Synced,
    ) -> io::Result<()> {
        for service in services {
            self.map
                .remove(service)
                .map_err(|error| name(map_io(error), service))?;
            synced.removed += usize::from(!is_address(service));
        }
        Ok(())
    }

    /// The services that the map holds.
    pub fn list(&self) -> io::Result<BTreeSet<Service>> {
        let mut services = self.entries()?;
        services.retain(|service| !is_address(service));
        Ok(services)
    }

    fn entries(&self) -> io::Result<BTreeSet<Service>> {
        let mut services = BTreeSet::new();
        sys::scan(self.map.map().fd().as_fd(), |service: Service, _: u32| {
            services.insert(service);
        })?;
        Ok(services)
    }
}

/// The entry of an address.
fn address_of(address: Address) -> Service {
    Service::new(address, Port([0; 2]), 0)
}

fn is_address(service: &Service) -> bool {
    service.protocol == 0
}

/// The value of an entry; what counts is that there is one.
const PRESENT: u32 = 1;

fn name(error: io::Error, service: &Service) -> io::Error {
    let why = if error.raw_os_error() == Some(libc::E2BIG) {
        "SERVICES is full".to_owned()
    } else {
        error.to_string()
    };
    io::Error::new(error.kind(), format!("service {service:?}: {why}"))
}
