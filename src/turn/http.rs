//! Turns over HTTP: reads the body once, and relays the answer as it arrives.

pub mod whole;
pub mod replay;
pub mod response_id;
pub mod item_ids;
pub mod id_gate;
pub mod heavy_places;
pub mod issued;
pub mod translation;
pub mod form;
pub mod course;
pub mod passage;
pub mod relay;
pub mod glance;
pub mod exchange;
pub mod heavy;
pub mod stored;
pub mod models;
