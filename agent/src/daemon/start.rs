//! The start of an agent: every part put in its place, in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use homing_common::{host::HostId, net::Service, session::SessionKey, settings::Settings};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::sleep_until,
};

use super::{
    Parts,
    admin::AdminDoors,
    bases::{self, Bases, Doors},
    crowded::Crowded,
    drain::{self, Drain},
    members, mss,
    pump::pump,
    reload::{Changed, Reload, Values, seeds},
    rendezvous,
    table::{self, Shared},
    view::{AgentView, Captures},
    vitals::KernelVitals,
};
use crate::{
    admin::Logs,
    config::Config,
    datapath::{
        Datapath, LoadOptions,
        flows::Flows,
        held::{self, HeldCounters},
        keeper::Keeper,
        link::Point,
        load::Ground,
        parked::BATCHES_WAITING,
        resolver::{self, Resolver},
        sockets::Watcher,
        stack::Stack,
        template::{Outer, outer_len},
    },
    gossip::{
        ask::FastPath,
        task::{self as gossip, Handle, HostStatus},
    },
    migration::{drain::ThisHost, task as migration},
    pop::{
        Domain, Fingerprint, Member, Stream,
        keys::{KeyFile, Keys},
    },
};

/// Batches of session events that may wait for gossip. When they do, the ring
/// buffer takes up the slack.
const EVENTS_WAITING: usize = 64;

/// After this long the membership is taken to have settled: what an agent before
/// left in `HOSTS` of others goes.
const SETTLED_AFTER: Duration = Duration::from_secs(15);

/// An agent that runs.
pub(super) struct Agent {
    pub view: AgentView,
    pub moves: migration::Handle,
    pub gossip: Handle,
    pub bases: Bases,
}

/// Starts all parts. Applications come in by the `doors`, operators by `admin`.
pub(super) async fn start(
    config: &Config,
    doors: Doors,
    admin: AdminDoors,
    logs: Arc<dyn Logs>,
    leave: watch::Sender<Option<Option<Duration>>>,
    parts: &mut Parts,
) -> Result<Agent> {
    let started = Instant::now();
    let key_file = KeyFile::read(&config.pop.key_file)?;
    let keys = Keys::of(&key_file);
    let session_keys = keys.session;
    let options = load_options(config, &keys);
    let ground = Arc::new(Ground::new(options.clone()));
    let values = Values::new(config);
    // Waits for the verifier and for RCU.
    let mut datapath = spawn_blocking(move || Datapath::load(&options)).await??;
    for attached in &datapath.attachment.attached {
        match &attached.to {
            Point::Xdp { interface, .. } => tracing::info!(
                interface, mode = config.host.xdp_mode.label(), link = attached.link_id, how = ?attached.how,
                "XDP is attached"
            ),
            Point::Egress { interface, .. } => tracing::info!(
                interface, link = attached.link_id, how = ?attached.how,
                "the egress program is attached"
            ),
            Point::Cgroup { path, .. } => tracing::info!(
                cgroup = %path.display(), link = attached.link_id, how = ?attached.how,
                "the hooks on sockets are attached"
            ),
            Point::CgroupEgress { path, .. } => tracing::info!(
                cgroup = %path.display(), link = attached.link_id, how = ?attached.how,
                "the program on what sockets send is attached"
            ),
        }
    }
    let services = datapath
        .services
        .sync(&config.services)
        .context("cannot write SERVICES")?;
    tracing::info!(
        added = services.added,
        removed = services.removed,
        "the services are in force"
    );
    let of_services = values.services.subscribe();
    let watcher = watcher(&datapath, session_keys.key, of_services).await;
    let watched = watcher.as_ref().map(Watcher::counters).unwrap_or_default();
    if let Some(watcher) = watcher {
        parts.run(
            "the watcher of sockets",
            async move { Ok(watcher.run().await?) },
        );
    }
    let mut cell = datapath.identity;
    let identity = cell.begin().context("cannot write IDENTITY")?;
    let stream = Stream {
        incarnation: identity.incarnation,
        generation: identity.generation,
    };
    tracing::info!(
        incarnation = stream.incarnation,
        generation = stream.generation,
        "a life begins"
    );

    let control = datapath.control;
    control.set_incarnation(identity.incarnation);
    control.set_echo_keys(keys.echo);
    let (vitals, synced) = KernelVitals::new(control.clone());

    let mut routes = Vec::new();
    let kept = table::kept(config.limits.owners);
    datapath.owners.keep(kept);
    let owners = &datapath.owners;
    owners.scan(|session, host| routes.push((session, host)));
    let owners = Shared::new(datapath.owners, datapath.hosts.voids());
    let open = Arc::new(AtomicU64::new(0));

    let flows = Flows::new(
        datapath.sessions.clone(),
        control.clone(),
        values.idle.subscribe(),
        config.limits.sessions,
        datapath.events.finder(),
    );
    let flow_counters = flows.counters();
    parts.run("the search for idle flows", async move {
        Ok(flows.run().await?)
    });

    let (events_to, events_from) = mpsc::channel(EVENTS_WAITING);
    let (news_to, news) = mpsc::channel(EVENTS_WAITING);
    let events = datapath.events;
    let finder = events.finder();
    parts.run("the reader of EVENTS", async move {
        Ok(events.run(session_keys, events_to).await?)
    });
    let linger = values.linger.subscribe();
    let count = open.clone();
    parts.run("the pump of session events", async move {
        pump(events_from, news_to, linger, &count).await;
        Ok(())
    });
    if let Some(log) = datapath.kernel_log {
        parts.run("the reader of the kernel programs' log", async move {
            Ok(log.run().await?)
        });
    }

    let app_doors = [doors.apps.access(), doors.mux.access()];
    let (bases, incoming) = Bases::open(config, &keys, stream, doors, parts)?;
    let park = datapath.park.clone();
    parts.run("the reader of PARKED", async move { Ok(park.run().await?) });

    let (told, carriers) = (control.clone(), bases.carriers.clone());
    let raise = move |above| {
        let identity = cell.raise(above)?;
        told.set_incarnation(identity.incarnation);
        let stream = Stream {
            incarnation: identity.incarnation,
            generation: identity.generation,
        };
        carriers.set_stream(stream);
        Ok(stream)
    };
    let mut options = gossip_options(config, keys, stream, routes, vitals)?;
    options.remembered =
        members::read(&datapath.members, config.host.id).context("cannot read MEMBERS")?;
    options.me.draining = control.is_draining();
    let (unknown_to, parked) = mpsc::channel(BATCHES_WAITING);
    let (fragments_to, fragments) = mpsc::channel(BATCHES_WAITING);
    let held = Arc::new(HeldCounters::default());
    let (injector, held_counters) = (datapath.injector.clone(), held.clone());
    parts.run("the holder of fragments", async move {
        held::run(fragments, injector, held_counters).await;
        Ok(())
    });
    let stack = Stack::new(datapath.injector.clone(), &config.host.interfaces[0]);
    let captures = Captures::new(ground.clone(), datapath.injector.clone());
    let reader = datapath.parked;
    let counters = reader.counters();
    parts.run("the reader of ASK", async move {
        Ok(reader.run(unknown_to, fragments_to).await?)
    });
    options.fast_path = Some(FastPath {
        parked,
        reader: counters,
        answerer: datapath.answerer,
        injector: datapath.injector,
    });
    let carriers = (bases.carriers.clone(), incoming.gossip);
    let (gossip, task) = gossip::open(options, owners.clone(), news, Box::new(raise), carriers)?;
    parts.run("gossip", async move { Ok(task.run().await?) });

    let (hosts, carriers) = (gossip.watch_hosts(), bases.carriers.clone());
    let sockets = bases.sockets.clone();
    parts.run("the link between membership and carriers", async move {
        bases::follow(hosts, carriers, sockets).await;
        Ok(())
    });
    let (sockets, told) = (bases.sockets.clone(), gossip.clone());
    parts.run(
        "the link between message sockets and membership",
        async move {
            bases::tell_offers(sockets, told).await;
            Ok(())
        },
    );

    let outer = Outer {
        encapsulation: config.tunnel.encapsulation,
        tunnel: config.tunnel.network,
        host: config.host.id,
    };
    let (hosts, table) = (gossip.watch_hosts(), datapath.rendezvous);
    let (draining_to, draining) = watch::channel(control.is_draining());
    let (moves, task) = migration::open(migration::Options {
        host: config.host.id,
        stream,
        session_key: session_keys.key,
        services: values.services.subscribe(),
        limits: values.moves.subscribe(),
        folder: config.apps.socket.with_extension("moves"),
        moving: datapath.moving.clone(),
        park: datapath.park.clone(),
        sessions: datapath.sessions.clone(),
        stack,
        apps: (bases.apps.clone(), incoming.events),
        carriers: (bases.carriers.clone(), incoming.moves),
        gossip: gossip.clone(),
        found: finder,
        draining: draining.clone(),
    })?;
    parts.run("moves", task.run());
    let apps = bases.apps.clone();
    let drain = Drain::new(
        drain::Parts {
            control: control.clone(),
            gossip: gossip.clone(),
            mover: moves.clone(),
            here: ThisHost::new(
                datapath.sessions.clone(),
                values.services.subscribe(),
                Arc::new(move |service| apps.registered(service).is_some()),
            ),
            in_force: values.config.subscribe(),
            names: [
                ("HOMING_INSTANCE", config.instance.clone()),
                ("HOMING_HOST", config.host.id.to_string()),
            ],
        },
        draining_to,
    );
    let me = config.host.id;
    parts.run("the choice of rendezvous hosts", async move {
        rendezvous::follow(me, hosts, synced, draining, table).await;
        Ok(())
    });

    let (resolver, task) = resolver::resolver(outer, datapath.hosts);
    parts.run("the resolver", async move { Ok(task.run().await?) });
    let limit = mss::follow(
        values.mss.subscribe(),
        outer_len(config.tunnel.encapsulation, &config.tunnel.network),
        config.host.interfaces.clone(),
        resolver.clone(),
        control.clone(),
    );
    parts.run("the limit of the MSS", async move { Ok(limit.await?) });
    let (hosts, ways) = (gossip.watch_hosts(), resolver.clone());
    parts.run("the link between membership and resolver", async move {
        follow(hosts, ways).await;
        Ok(())
    });

    let (hosts, map) = (gossip.watch_hosts(), datapath.members);
    parts.run("the memory of members", async move {
        Ok(members::follow(hosts, map).await?)
    });

    let attachment = datapath.attachment;
    let (keeper, places) = Keeper::new(
        attachment.pins.clone(),
        config.host.interfaces.clone(),
        config.host.xdp_mode,
        attachment.attached.clone(),
    );
    parts.run("the keeper of attachments", async move {
        Ok(keeper.run().await?)
    });

    let (crowded, stats) = (Crowded::default(), datapath.stats.clone());
    let follow = crowded.clone().follow(stats);
    parts.run(
        "the look at crowded tables",
        async move { Ok(follow.await?) },
    );

    let [apps_door, mux_door] = app_doors;
    let changed = Changed {
        values,
        map: Some(datapath.services),
        control,
        gossip: gossip.clone(),
        carriers: bases.carriers.clone(),
        apps: bases.apps.clone(),
        messages: bases.sockets.clone(),
        doors: [apps_door, mux_door, admin.both],
        read_door: admin.read,
        readers: admin.readers,
    };
    let view = AgentView {
        attachment,
        places,
        started,
        gossip: gossip.clone(),
        resolver,
        sessions: datapath.sessions,
        stats: datapath.stats,
        crowded,
        watched,
        held,
        flows: flow_counters,
        owners,
        carriers: bases.carriers.clone(),
        apps: bases.apps.clone(),
        messages: bases.sockets.clone(),
        captures,
        ground,
        trial: Arc::default(),
        moving: datapath.moving,
        park: datapath.park,
        moves: moves.clone(),
        session_key: session_keys.key,
        open,
        reload: Reload::new(changed, key_file),
        drain,
        logs,
        leave,
    };
    Ok(Agent {
        view,
        moves,
        gossip,
        bases,
    })
}

/// Makes `SESSIONS` true to the kernel's sockets before anybody is told what is in
/// it. An agent that cannot goes on with what the hooks recorded.
async fn watcher(
    datapath: &Datapath,
    key: SessionKey,
    services: watch::Receiver<Arc<BTreeSet<Service>>>,
) -> Option<Watcher> {
    let (sessions, stats) = (datapath.sessions.clone(), datapath.stats.clone());
    let (moving, finder) = (datapath.moving.clone(), datapath.events.finder());
    let opened = Watcher::open(sessions, moving, stats, key, services, finder);
    let failure = match opened {
        Ok(mut watcher) => match watcher.audit().await {
            Ok(()) => return Some(watcher),
            Err(error) => error,
        },
        Err(error) => error,
    };
    tracing::warn!(
        error = %failure,
        fix = "load the modules tcp_diag and udp_diag (`modprobe -a tcp_diag udp_diag`), and restart the agent",
        "cannot read the kernel's sockets: connections that are older than the hooks stay unknown to the POP"
    );
    None
}

fn load_options(config: &Config, keys: &Keys) -> LoadOptions {
    LoadOptions {
        pin_dir: config.pin_dir(),
        interfaces: config.host.interfaces.clone(),
        xdp_mode: config.host.xdp_mode,
        cgroup: config.host.cgroup.clone(),
        settings: Settings {
            session_key: keys.session.key,
            fragments_key: keys.fragments,
            tunnel: config.tunnel.network,
            tunnel_address: config.tunnel_address(),
            fabric: config.pop.address.ip().into(),
            host: config.host.id,
            encapsulation: config.tunnel.encapsulation as u8,
            hop_limit: config.tunnel.hop_limit,
            fabric_port: config.pop.address.port(),
            zero: 0,
            closed_entries: config.limits.closed,
            fragments_entries: config.limits.fragments,
        },
        owners_entries: config.limits.owners + table::kept(config.limits.owners),
        sessions_entries: config.limits.sessions,
    }
}

fn gossip_options(
    config: &Config,
    keys: Keys,
    stream: Stream,
    routes: Vec<(homing_common::session::SessionId, HostId)>,
    vitals: KernelVitals,
) -> Result<gossip::Options> {
    let domain = Domain::try_from(config.host.domain.as_str())?;
    let fingerprint = Fingerprint::of(
        &config.tunnel.network,
        &config.services,
        keys.session_ids,
        keys.fragments_id,
    );
    Ok(gossip::Options {
        me: Member::starting(
            config.host.id,
            stream,
            config.pop.address,
            domain,
            fingerprint,
        ),
        seeds: seeds(config),
        keys,
        multicast: config.pop.multicast,
        void_after: config.pop.void_after,
        kernel_dead_after: config.pop.kernel_dead_after,
        claims_max: config.limits.owners as usize,
        routes,
        remembered: Vec::new(),
        vitals: Box::new(vitals),
        fast_path: None,
    })
}

/// Tells the resolver which hosts packets are exchanged with.
async fn follow(mut hosts: watch::Receiver<Arc<Vec<HostStatus>>>, resolver: Resolver) {
    let mut told: BTreeMap<HostId, IpAddr> = BTreeMap::new();
    let settled_at = tokio::time::Instant::now() + SETTLED_AFTER;
    let mut old = true;
    loop {
        let (wanted, nameless) = routed(&hosts.borrow_and_update());
        for host in told.keys().filter(|host| !wanted.contains_key(host)) {
            resolver.remove(*host).await;
        }
        for (host, address) in &wanted {
            if told.get(host) != Some(address) {
                resolver.add(*host, *address).await;
            }
        }
        told = wanted;
        let settled = tokio::time::Instant::now() >= settled_at;
        if old && settled && !nameless {
            old = false;
            resolver.set(told.clone()).await;
        }
        tokio::select! {
            changed = hosts.changed() => if changed.is_err() { return },
            () = sleep_until(settled_at), if !settled => {}
        }
    }
}

/// The hosts that packets are exchanged with, and their fabric addresses; and
/// whether there are some of which only claims are known: the ways to them that
/// an agent before this one wrote must stay in force.
fn routed(hosts: &[HostStatus]) -> (BTreeMap<HostId, IpAddr>, bool) {
    let routed = hosts.iter().filter(|host| host.routed);
    let nameless = routed.clone().any(|host| host.member.is_none());
    let named = routed.filter_map(|host| Some((host.host, host.member?.address.ip())));
    (named.collect(), nameless)
}
