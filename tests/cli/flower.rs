//! A node of Flower from the command line, as far as it goes without one: `make flower` has the
//! rest.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Output;

use super::adapter::{Folder, on_tiny};
use super::{assert_fails, json, run, stderr};

/// Keys, examples and a folder of its own: what `flower join` needs.
struct Node(Folder);

impl Node {
    fn new() -> Self {
        let node = Self(Folder::new());
        for (name, kind) in [("key", "p256"), ("old", "ed25519"), ("server", "ed25519")] {
            let made = run(&["delta", "key", &node.path(&format!("{name}.pem")), "--kind", kind]);
            std::fs::write(node.path(&format!("{name}.pub")), made.stdout).unwrap();
        }
        let lines = "{\"prompt\": \"the sea\", \"completion\": \" is blue\"}\n".repeat(4);
        std::fs::write(node.path("data.jsonl"), lines).unwrap();
        node
    }

    fn path(&self, name: &str) -> String {
        self.0.path(name).to_str().unwrap().to_string()
    }

    fn join(&self, url: &str, key: &str, more: &[&str]) -> Output {
        let (data, key, trust) = (self.path("data.jsonl"), self.path(key), self.path("server.pub"));
        let state = self.path("state");
        let args = ["flower", "join", url, "--data", &data, "--key", &key, "--trust", &trust];
        let of = ["--id", "demo", "--state", &state, "--json", "--seq-len", "32"];
        on_tiny(&[&args[..], &of, more].concat())
    }
}

/// A server that says the same to everyone.
fn server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The request comes in one or two pieces; what is left of it matters to nobody.
            let _ = stream.read(&mut [0; 1 << 16]);
            let _ = stream.write_all(answer);
        }
    });
    url
}

#[test]
fn a_key_is_printed_as_flower_registers_it() {
    let node = Node::new();
    let said = json(&run(&["flower", "key", "--key", &node.path("key.pem"), "--json"]));
    let openssh = said["openssh"].as_str().unwrap();
    let begins = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABB";
    assert!(openssh.starts_with(begins), "{openssh}");
    assert!(said["public_key"].as_str().unwrap().starts_with("p256:04"));
    let plain = run(&["flower", "key", "--key", &node.path("key.pem")]);
    assert_eq!(String::from_utf8(plain.stdout).unwrap().trim(), openssh);
    assert_fails(&run(&["flower", "key", "--key", &node.path("old.pem")]), 2, "--kind p256");
}

#[test]
fn what_can_not_join_is_said_before_a_model_is_loaded() {
    let node = Node::new();
    assert_fails(&node.join("superlink:8000", "key.pem", &[]), 2, "`url`");
    assert_fails(&node.join("http://127.0.0.1:1", "old.pem", &[]), 2, "P-256");
    let roots = node.path("server.pub");
    let with_roots = ["--root-certificates", roots.as_str()];
    assert_fails(&node.join("http://127.0.0.1:1", "key.pem", &with_roots), 2, "https");
    assert_fails(&node.join("https://127.0.0.1:1", "key.pem", &with_roots), 1, "no certificate");
    std::fs::write(node.path("state/node"), "another file").unwrap();
    assert_fails(&node.join("http://127.0.0.1:1", "key.pem", &[]), 1, "`node state`");
    assert_eq!(std::fs::read_to_string(node.path("state/node")).unwrap(), "another file");
}

#[test]
fn a_server_that_is_none_is_said_in_a_line() {
    let node = Node::new();
    let no_api =
        server(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    assert_fails(&node.join(&no_api, "key.pem", &[]), 1, "flwr has from 1.40 on");
    let portal = server(
        b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\nconnection: close\r\n\r\n<html>Log in</html> ",
    );
    let short = ["--patience", "1"];
    for url in [portal.as_str(), "http://127.0.0.1:1"] {
        let done = node.join(url, "key.pem", &short);
        assert_fails(&done, 1, "start again later");
        let said = stderr(&done);
        assert!(said.contains("warning: register-node:"), "{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
    }
}
