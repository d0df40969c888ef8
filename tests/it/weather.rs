//! Redis in any weather, under two hundred sessions on three replicas: no turn fails, no turn waits
//! for Redis, no session moves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::scene::{
    AWAY, FAILURES, KNOWN, NEW, PERIOD, Scene, drift, introduce, keys, lopsided, turn_each,
};
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually, found, ms};

mod access;
mod failover;
mod faulty;
mod recovery;
mod sharded;
mod standalone;
