//! Firecracker's API: HTTP over the Unix socket that it listens on, one connection for each request.
//!
//! A guest that took over its Firecracker speaks here too: what a reply may hold is bounded, and so is each wait.

mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

pub use request::*;

/// The largest reply taken, head and body each. What is asked here is answered with some hundred bytes.
const MAX_REPLY: usize = 64 << 10;
/// The longest explanation that is passed on, in characters.
const MAX_FAULT: usize = 400;

/// Why a request was not done, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens.
    #[error("cannot connect to Firecracker at {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The exchange failed.
    #[error("the connection to Firecracker failed during {what}")]
    Http {
        what: String,
        #[source]
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("Firecracker did not answer {what} within {} s", limit.as_secs())]
    TimedOut { what: String, limit: Duration },
    /// An answer that is none.
    #[error("Firecracker's answer to {what} cannot be used: {why}")]
    Reply { what: String, why: String },
    /// It said no, and why.
    #[error("Firecracker refused {what}: {fault}")]
    Refused { what: String, fault: String },
}

/// The API of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    socket: PathBuf,
}

/// What a process says of itself: `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Instance {
    /// The name that it was started with.
    pub id: String,
    /// How far it is.
    pub state: InstanceState,
    /// Its version.
    pub vmm_version: String,
}

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// It has no machine that ran.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The vCPUs run.
    Running,
    /// They stand still.
    Paused,
}

#[derive(Deserialize)]
struct VersionReply {
    firecracker_version: String,
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

impl Api {
    /// The API behind a socket. Connects when something is asked.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for one thing and waits until it is done.
    pub async fn send(&self, request: &Request) -> Result<(), ApiError> {
        let (method, path) = request.endpoint();
        let body = serde_json::to_vec(request).map_err(|error| ApiError::Reply {
            what: what(&method, &path),
            why: format!("it cannot be asked: {error}"),
        })?;
        self.exchange(method, path, body.into(), request.limit()).await.map(drop)
    }

    /// The process's version.
    pub async fn version(&self) -> Result<String, ApiError> {
        Ok(self.get::<VersionReply>("/version").await?.firecracker_version)
    }

    /// What the process says of itself.
    pub async fn instance(&self) -> Result<Instance, ApiError> {
        self.get("/").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let reply = self.exchange(Method::GET, path.to_owned(), Bytes::new(), TIMEOUT).await?;
        serde_json::from_slice(&reply)
            .map_err(|error| ApiError::Reply { what: what(&Method::GET, path), why: error.to_string() })
    }

    async fn exchange(
        &self,
        method: Method,
        path: String,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, ApiError> {
        let what = what(&method, &path);
        match tokio::time::timeout(limit, self.converse(&what, method, &path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::TimedOut { what, limit }),
        }
    }

    async fn converse(&self, what: &str, method: Method, path: &str, body: Bytes) -> Result<Bytes, ApiError> {
        let failed = |source| ApiError::Http { what: what.to_owned(), source };
        let unusable = |why: String| ApiError::Reply { what: what.to_owned(), why };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ApiError::Connect { path: self.socket.clone(), source })?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_REPLY)
            .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // Ends with this call, whether it is answered or dropped.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| unusable(format!("it cannot be asked: {error}")))?;
        let reply = sender.send_request(request).await.map_err(failed)?;
        let status = reply.status();
        let body = Limited::new(reply.into_body(), MAX_REPLY)
            .collect()
            .await
            .map_err(|error| unusable(format!("its body: {error}")))?
            .to_bytes();
        if status == StatusCode::OK || status == StatusCode::NO_CONTENT {
            return Ok(body);
        }
        let fault = match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) => fault.fault_message,
            Err(_) => format!("{status} without an explanation"),
        };
        let fault = crate::console::printable(&fault).chars().take(MAX_FAULT).collect();
        Err(ApiError::Refused { what: what.to_owned(), fault })
    }
}

fn what(method: &Method, path: &str) -> String {
    format!("'{method} {path}'")
}
