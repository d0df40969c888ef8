//! Tests a replica under pressure: no client, disk or version alone takes a replica down.

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
mod paced;
mod pages;
mod places;
mod reading;
mod rendered;
mod refusals;
mod secrets;
mod shares;
mod slow;
mod soak;
mod splicing;
mod stalled;
mod streams;
mod tasks;
mod versions;
