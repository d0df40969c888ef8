# The image of Warmkey: the program, the libraries that it loads, and the authorities that it trusts. No shell, no package manager.
#
#   docker build -t warmkey:0.1.0 .
#
# RUST_IMAGE may be another image with Rust and a C compiler.
ARG RUST_IMAGE=rust:1.95-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# What it depends on is built first, and again only when the lock file changes.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs && cargo build --release --locked
COPY migrations migrations
COPY src src
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

# A root file system of its own. glibc resolves names without further modules, but wants to be told the order.
RUN set -eu; root=/image; \
    install -D target/release/warmkey "$root/usr/local/bin/warmkey"; strip "$root/usr/local/bin/warmkey"; \
    for library in $(ldd target/release/warmkey | grep -o '/[^ ]*'); do install -D "$library" "$root$library"; done; \
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"; \
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"; \
    echo 'nonroot:x:65532:65532::/var/lib/warmkey:/' >"$root/etc/passwd"; \
    echo 'nonroot:x:65532:' >"$root/etc/group"; \
    install -d -m 1777 "$root/tmp"; \
    install -d -o 65532 -g 65532 "$root/var/lib/warmkey"

FROM scratch
COPY --from=build /image /
USER 65532:65532
WORKDIR /var/lib/warmkey
# An engine that sets no PATH of its own finds the operator's commands by it: `kubectl exec POD -- warmkey key list`.
ENV PATH=/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 8080 9090
ENTRYPOINT ["/usr/local/bin/warmkey"]
CMD ["serve"]
