//! Under pressure: nothing that one client, one disk or one version does takes a replica down.

mod answers;
mod cores;
mod descriptors;
mod disk;
mod early;
mod heavy;
mod idle;
mod leaving;
mod log;
mod memory;
mod models;
mod paced;
mod pages;
mod places;
mod reading;
mod refusals;
mod secrets;
mod slow;
mod soak;
mod sockets;
mod splicing;
mod stalled;
mod streams;
mod tasks;
mod versions;
