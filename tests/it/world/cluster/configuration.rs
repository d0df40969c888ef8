//! The configuration of a replica of a cluster.

use super::Cluster;
use crate::world::replica::ENVIRONMENT;

impl Cluster {
    /// A variable of the replicas' environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push_str(&format!("{ENVIRONMENT}{name}={value}\n"));
        self
    }

    /// Commands of a shell that run before each replica, such as limits, variables or another
    /// standard error. The replica then takes the shell's place.
    pub fn shell(mut self, commands: &str) -> Self {
        self.shell = commands.into();
        self
    }

    /// The configuration of a replica.
    pub(super) fn configuration(&self, upstream: &str, store: Option<&str>) -> String {
        let server: String =
            self.server.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        let keys: String = self
            .keys
            .iter()
            .map(|key| {
                let project = match key.is_unplaced {
                    true => String::new(),
                    false => format!("project = {:?}\n", key.project),
                };
                format!(
                    "[[key]]\nid = {:?}\nupstream = \"openai\"\norganization = {:?}\n{project}region = {:?}\n\
                     weight = {}\nsecret = {:?}\n",
                    key.id,
                    key.organization,
                    key.region,
                    key.weight,
                    key.secret()
                )
            })
            .collect();
        format!(
            "{}[server]\n{server}[store]\nurl = {}\n{}[ledger]\n{}\n[binding]\n{}\n[telemetry]\n{}\n[[upstream]]\nname = \"openai\"\nbase_url = {upstream:?}\n{}\n\
             {keys}{}{}",
            self.environment,
            store.unwrap_or("\"memory:\""),
            self.store,
            self.ledger,
            self.binding,
            self.telemetry,
            self.upstream_options,
            self.clients,
            self.prices
        )
    }
}
