//! The gateway from outside: real processes, a real Redis, a real balancer, and an upstream that
//! keeps the record.
//!
//! Each test describes its deployment in a line, plays clients against it, and reads the upstream's
//! record.

#![expect(
    clippy::disallowed_methods,
    reason = "a test measures real time, and ends the tasks and threads that it starts"
)]

mod world;

mod store;

mod instruments;

mod demo;
mod judge;
mod promise;

mod binding;
mod failover;
mod forgotten;
mod forks;
mod outage;
mod ownership;
mod signals;
mod stored;
mod tiers;
mod weather;

mod generations;
mod health;
mod judgements;
mod unseen;
mod hosts;
mod upstreams;
mod marathon;
mod models;
mod reload;
mod membership;
mod scripts;

mod chat;
mod answers;
mod bytes;
mod canary;
mod headers;

mod records;
mod configuration;
mod contract;
mod drain;
mod errors;
mod http;
mod pressure;
mod ledger;
mod leaving;
mod limits;

mod admin;
mod in_flight;
mod operator;
mod probe;
mod tls;
mod traces;
mod trail;

mod closing;
mod upgrade;
mod websocket;

mod rfc6455;
mod sockets;
