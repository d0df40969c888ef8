//! The ground that all tests stand on: real replicas, stores, upstreams, a load balancer, clients,
//! and bounded waiting. It holds no tests.

pub mod lateness;
pub mod port;
pub mod postgres;
pub mod process;
pub mod waiting;
pub mod wire;

pub mod balancer;
pub mod nginx;
pub mod cable;
pub mod certificates;
pub mod trap;
pub mod http2;
pub mod tls_server;
pub mod recorder;
pub mod redis;
pub mod replica;
pub mod simulator;

pub mod chat;
pub mod codex;
pub mod collector;
pub mod fixtures;
pub mod frames;
pub mod load;
pub mod socket;

pub mod admin;
pub mod cluster;

pub mod chain;
pub mod scene;
pub mod sessions;
pub mod store;
