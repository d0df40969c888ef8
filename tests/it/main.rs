//! The gateway from outside: real processes, a real Redis, a real balancer, and an upstream that keeps the record.
//!
//! Each test describes its deployment in a line, plays clients against it, and asks the upstream what happened.

mod patience;
mod lateness;
mod port;
mod process;
mod certificates;
mod wire;

mod balancer;
mod cable;
mod postgres;
mod recorder;
mod redis;
mod replica;
mod simulator;
mod socket;
mod store;

mod cluster;
mod codex;
mod desk;
mod fixtures;
mod frames;

mod instruments;
mod load;

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
mod weather;

mod generations;
mod health;
mod hosts;
mod marathon;
mod reload;
mod roll;
mod scripts;

mod answers;
mod bytes;
mod headers;

mod books;
mod configuration;
mod drain;
mod errors;
mod http;
mod ledger;
mod leaving;
mod limits;

mod admin;
mod in_flight;
mod operator;
mod trail;

mod parting;
mod upgrade;
mod websocket;

mod rfc6455;
mod sockets;
