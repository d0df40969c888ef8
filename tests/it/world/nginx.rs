//! nginx in front of one replica, with its default settings except for the size of bodies.

use std::net::SocketAddr;
use std::path::Path;

use tokio::process::Command;

use crate::world::port;
use crate::world::process::{Folder, Process};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::Connection;

pub struct Nginx {
    address: SocketAddr,
    _process: Process,
}

impl Nginx {
    /// Passes requests on to `replica`: at once, or once the whole body `is_gathered`.
    pub async fn start(folder: &Folder, replica: SocketAddr, is_gathered: bool) -> Self {
        for attempt in 0..5 {
            let address = port::free();
            let name = format!("nginx-{attempt}-{is_gathered}");
            let own = folder.path().join(&name);
            std::fs::create_dir_all(&own).expect("the temporary folder can be written");
            let gathers = if is_gathered { "on" } else { "off" };
            let file = folder
                .write(&format!("{name}.conf"), &configuration(&own, address, replica, gathers));
            let program =
                ["/usr/sbin/nginx", "nginx"].into_iter().find(|one| Path::new(one).exists());
            let mut command = Command::new(program.unwrap_or("nginx"));
            command.arg("-p").arg(&own).arg("-c").arg(file).args(["-e", "stderr"]);
            let mut process = Process::start(&name, command, folder.path(), "nginx");
            let is_up = eventually(SOON, "nginx listens", async || {
                if !process.is_running() {
                    return Some(false);
                }
                Connection::try_open(address).await.ok().map(|_| true)
            })
            .await;
            if is_up {
                return Self { address, _process: process };
            }
        }
        panic!("no port for nginx after five attempts");
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn configuration(own: &Path, address: SocketAddr, replica: SocketAddr, gathers: &str) -> String {
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};\n", own.join(kind).display()))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid {};\nevents {{ worker_connections 512; }}\nhttp {{\naccess_log off;\n{paths}\
         client_max_body_size 0;\nserver {{\nlisten {address};\nlocation / {{\nproxy_pass http://{replica};\n\
         proxy_http_version 1.1;\nproxy_set_header Connection \"\";\nproxy_request_buffering {gathers};\n}}\n}}\n}}\n",
        own.join("pid").display()
    )
}
