//! A daemon with one VM and its agent, in this process: it holds the VM, its lease and its sessions, and cuts connections
//! as often as a test wants. The agent's end of the channel is the real one (`SessionTable`); commands are a few words that
//! it understands by itself.

pub(crate) mod guest;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_proto::guest::{Outcome, Sshd};
use serde_json::{Value, json};

use guest::{Guest, talk};
use wire::{receive, reply, send};

/// What the fake knows and what it was asked.
#[derive(Default)]
pub(crate) struct State {
    /// Whether the VM exists.
    pub(crate) exists: bool,
    /// Methods called, without the interface.
    pub(crate) calls: Vec<String>,
    /// Parameters of the last `VmCreate`.
    pub(crate) spec: Value,
    /// The other end of the lease.
    pub(crate) lease: Option<OwnedFd>,
    /// A session's connection is cut after so many bytes, again and again.
    pub(crate) cut_after: Option<usize>,
    /// The daemon's own connection is cut with it.
    pub(crate) cut_daemon: bool,
    /// The kernel is to be pulled first.
    pub(crate) kernel_missing: bool,
    /// A start or a pull takes until it is cancelled.
    pub(crate) hangs: bool,
    /// What is asked of one of several VMs takes until it is cancelled.
    pub(crate) holds: bool,
    /// It was cancelled.
    pub(crate) cancelled: bool,
    /// What a job tells before its end, each after so long; without any a few words at once.
    pub(crate) events: Vec<(Duration, Value)>,
    /// The connection is cut after the first event of a job, once.
    pub(crate) cut_job: bool,
    /// The connection is cut when a job was begun over it, once.
    pub(crate) cut_accepted: bool,
    /// So many connections are closed at their first call, as by a daemon that is being killed.
    pub(crate) ending: u32,
    /// Connections that sessions had.
    pub(crate) attached: usize,
    /// What `Unpack` or `Place` received, and port 13.
    pub(crate) unpacked: Vec<u8>,
    /// What there is where a test has several VMs.
    pub(crate) vms: Vec<Value>,
    /// What there is from the next listing on, and the next; `None` cuts the connection instead.
    pub(crate) later: VecDeque<Option<Vec<Value>>>,
    /// What was asked of them: method and parameters.
    pub(crate) asked: Vec<(String, Value)>,
    /// A port of the host that cannot be forwarded.
    pub(crate) taken_port: Option<u64>,
    /// Ids of those that refuse whatever is asked.
    pub(crate) refuse: Vec<String>,
    /// The jobs that are listed.
    pub(crate) jobs: Vec<Value>,
    /// The results of their jobs.
    results: BTreeMap<String, Value>,
    /// What `Pack` sends, and how it or `Ports` ends.
    pub(crate) pack: (Vec<u8>, Option<Outcome>),
    /// What each follower of the console log gets before its end; without any the VM is gone.
    pub(crate) console: VecDeque<Vec<u8>>,
    /// The guest's sshd; without one its agent does not know the question.
    pub(crate) sshd: Option<Sshd>,
    /// Variables and directory of the last command.
    pub(crate) request: Value,
}

/// The fake.
pub(crate) struct Fake {
    pub(crate) state: Arc<Mutex<State>>,
}

impl Fake {
    /// Listens where `banger` looks for its daemon.
    pub(crate) fn start(runtime: &Path) -> Self {
        std::fs::create_dir_all(runtime).unwrap();
        std::fs::set_permissions(runtime, std::fs::Permissions::from_mode(0o700)).unwrap();
        let listener = UnixListener::bind(runtime.join("bangerd.sock")).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let guest = Arc::new(Mutex::new(Guest::new()));
        let fake = Self { state: state.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (state, guest) = (state.clone(), guest.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &state, &guest));
            }
        });
        fake
    }
}

/// Begins what is asked of one of several VMs, and has its result ready.
fn ask(state: &mut State, method: &str, parameters: Value) -> Value {
    let id = parameters["vm"].as_str().unwrap().to_owned();
    state.asked.push((method.to_owned(), parameters));
    let at = state.vms.iter().position(|vm| vm["id"] == id.as_str()).unwrap();
    let vm = state.vms[at].clone();
    let result = if state.holds {
        json!({"outcome": "failed", "error": {"code": "cancelled", "message": "it was called off"}})
    } else if state.refuse.contains(&id) {
        json!({"outcome": "failed", "error":
            {"code": "wrong_state", "message": format!("cannot do it to VM {}", vm["name"])}})
    } else if method == "VmDelete" {
        state.vms.remove(at);
        json!({"outcome": "vm_deleted", "vm": {"id": id, "name": vm["name"]}})
    } else {
        json!({"outcome": "vm", "vm": vm})
    };
    let job = format!("{:012x}", 0x100 + state.results.len());
    state.results.insert(job.clone(), result);
    json!({"job": job, "vm": {"id": id, "name": vm["name"]}})
}

/// A VM as it is listed.
pub(crate) fn vm() -> Value {
    json!({
        "id": "0123456789ab", "name": "box", "state": "running", "image": "tiny", "kernel": "k",
        "image_digest": format!("sha256:{}", "0".repeat(64)), "vcpus": 1, "memory": 1 << 30, "disk": 1 << 30,
        "disk_used": 0, "disk_strategy": "qcow2", "nat": true, "ephemeral": false, "created_at": 0,
        "console_log": "/c",
    })
}

fn serve(stream: &UnixStream, state: &Arc<Mutex<State>>, guest: &Arc<Mutex<Guest>>) {
    while let Some((call, mut fds)) = receive(stream) {
        let method = call["method"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        let parameters = call["parameters"].clone();
        {
            let mut state = state.lock().unwrap();
            if state.ending > 0 {
                state.ending -= 1;
                return;
            }
            state.calls.push(method.clone());
        }
        let meant = find(&state.lock().unwrap(), &parameters["vm"]);
        let key = json!({"id": "0123456789ab", "name": "box"});
        let gone = json!({"error": "dev.banger.Daemon.Failed", "parameters":
            {"code": "not_found", "message": "there is no such VM"}});
        match method.as_str() {
            "GetInfo" => reply(
                stream,
                json!({"vendor": "v", "product": "p", "version": "0.1.0", "url": "u", "interfaces": []}),
            ),
            "VmCreate" if state.lock().unwrap().kernel_missing => send(stream, &no_kernel(), None),
            "KernelPull" => {
                state.lock().unwrap().kernel_missing = false;
                reply(stream, json!({"job": "00000000000b"}));
            }
            "Status" => reply(
                stream,
                json!({"pid": std::process::id(), "uid": 0, "mode": "user", "version": "0.1.0", "commit": "c",
                    "started_at": 0, "runtime_dir": "/r", "state_dir": "/s", "cache_dir": "/c", "log": "/l",
                    "running": 0, "vms": 0}),
            ),
            // It hangs.
            "Shutdown" => while receive(stream).is_some() {},
            "JobList" => reply(stream, json!({"jobs": state.lock().unwrap().jobs})),
            "JobShow" => {
                let text = parameters["job"].as_str().unwrap();
                let jobs = state.lock().unwrap().jobs.clone();
                match jobs.into_iter().find(|job| job["id"].as_str().unwrap().starts_with(text)) {
                    Some(job) => reply(stream, job),
                    None => send(stream, &gone, None),
                }
            }
            "JobCancel" => {
                state.lock().unwrap().cancelled = true;
                reply(stream, json!({}));
            }
            "VmCreate" => {
                let mut state = state.lock().unwrap();
                state.exists = true;
                state.spec = parameters["spec"].clone();
                state.lease = fds.pop();
                reply(stream, json!({"job": "00000000000a", "vm": key}));
                if std::mem::take(&mut state.cut_accepted) {
                    return stream.shutdown(std::net::Shutdown::Both).unwrap();
                }
            }
            "VmHold" => {
                state.lock().unwrap().lease = fds.pop();
                reply(stream, json!({}));
            }
            "VmForward" | "VmUnforward" => {
                let forward = parameters.get("forward").unwrap_or(&parameters);
                if forward["host"].as_u64() == state.lock().unwrap().taken_port {
                    let text = format!("the port {} is another's", forward["host"]);
                    let failed = json!({"error": "dev.banger.Daemon.Failed", "parameters":
                        {"code": "in_use", "message": text}});
                    send(stream, &failed, None);
                } else if method == "VmForward" {
                    let mut made = forward.clone();
                    made["state"] = "open".into();
                    reply(stream, made);
                } else {
                    reply(stream, json!({}));
                }
            }
            "VmList" => {
                let mut state = state.lock().unwrap();
                match state.later.pop_front() {
                    Some(Some(vms)) => state.vms = vms,
                    Some(None) => return,
                    None => {}
                }
                reply(stream, json!({"vms": state.vms}));
            }
            "VmStart" | "VmStop" | "VmRestart" | "VmKill" | "VmPause" | "VmResume" | "VmSet" => {
                let accepted = ask(&mut state.lock().unwrap(), &method, parameters);
                reply(stream, accepted);
            }
            "VmDelete" if !state.lock().unwrap().vms.is_empty() => {
                let accepted = ask(&mut state.lock().unwrap(), &method, parameters);
                reply(stream, accepted);
            }
            "VmDelete" => {
                state.lock().unwrap().exists = false;
                reply(stream, json!({"job": "00000000000d", "vm": key}));
            }
            "JobWatch" => {
                if !watch(stream, &parameters, state) {
                    return;
                }
            }
            "VmShow" => match meant {
                Some(vm) => reply(stream, vm),
                None => send(stream, &gone, None),
            },
            "VmLogs" => {
                let mut state = state.lock().unwrap();
                state.asked.push((method.clone(), parameters));
                match state.console.pop_front() {
                    Some(bytes) => {
                        let (reader, mut writer) = std::io::pipe().unwrap();
                        writer.write_all(&bytes).unwrap();
                        let from = &state.asked[state.asked.len() - 1].1["from"];
                        let at =
                            if from.is_null() { json!({"file": "a", "offset": 100}) } else { from.clone() };
                        send(stream, &json!({"parameters": {"at": at}}), Some(reader.into()));
                    }
                    None => send(stream, &gone, None),
                }
            }
            "SessionOpen" if meant.as_ref().is_some_and(|vm| vm["state"] != "running") => {
                let text = format!("VM {} does not run", meant.unwrap()["name"]);
                let at_rest = json!({"error": "dev.banger.Daemon.Failed", "parameters":
                    {"code": "wrong_state", "message": text}});
                send(stream, &at_rest, None);
            }
            "SessionOpen" if meant.is_some() => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                send(stream, &json!({"parameters": {}}), Some(theirs.into()));
                let cut = talk(ours, state, guest);
                if cut && state.lock().unwrap().cut_daemon {
                    // As a daemon that dies: the call's connection and the lease go too.
                    state.lock().unwrap().lease = None;
                    stream.shutdown(std::net::Shutdown::Both).unwrap();
                    return;
                }
            }
            _ => send(stream, &gone, None),
        }
    }
}

/// A VM by name or id; any is the only one where a test has not several.
fn find(state: &State, vm: &Value) -> Option<Value> {
    let named = state.vms.iter().find(|there| there["id"] == *vm || there["name"] == *vm).cloned();
    named.or_else(|| (state.vms.is_empty() && state.exists).then(self::vm))
}

fn no_kernel() -> Value {
    json!({"error": "dev.banger.Daemon.Failed", "parameters":
        {"code": "kernel_missing", "message": "the kernel 'debian-6.1' is not in the store"}})
}

/// Sends a job's events after a number; false when the connection is cut.
fn watch(stream: &UnixStream, parameters: &Value, state: &Arc<Mutex<State>>) -> bool {
    let digest = format!("sha256:{}", "0".repeat(64));
    let prepared = state.lock().unwrap().results.get(parameters["job"].as_str().unwrap()).cloned();
    let result = match parameters["job"].as_str().unwrap() {
        _ if prepared.is_some() => prepared.unwrap(),
        "00000000000d" => json!({"outcome": "vm_deleted", "vm": {"id": "0123456789ab", "name": "box"}}),
        "00000000000b" if !state.lock().unwrap().hangs => {
            json!({"outcome": "kernel", "kernel": {"name": "debian-6.1", "release": "6.1",
            "digest": digest, "source": "s", "disk_used": 0, "created_at": 0, "used_by": []}})
        }
        _ if state.lock().unwrap().hangs => json!({"outcome": "failed", "error":
            {"code": "cancelled", "message": "VM box was not started"}}),
        _ => json!({"outcome": "vm", "vm": vm()}),
    };
    let hangs = {
        let state = state.lock().unwrap();
        state.hangs || state.holds
    };
    let mut events = state.lock().unwrap().events.clone();
    if events.is_empty() {
        events.push((Duration::ZERO, json!({"event": "stage", "text": "boot"})));
        events.push((Duration::ZERO, json!({"event": "note", "text": "it is slow"})));
    }
    events.push((Duration::ZERO, json!({"event": "finished", "result": result})));
    let last = events.len() as u64;
    for (seq, (pause, mut event)) in (1..).zip(events) {
        if parameters["after"].as_u64().unwrap() >= seq {
            continue;
        }
        std::thread::sleep(pause);
        while hangs && seq == last && !state.lock().unwrap().cancelled {
            std::thread::sleep(Duration::from_millis(2));
        }
        (event["seq"], event["at_ms"]) = (seq.into(), 0.into());
        send(stream, &json!({"parameters": event, "continues": seq < last}), None);
        if seq == 2 && std::mem::take(&mut state.lock().unwrap().cut_job) {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
            return false;
        }
    }
    true
}
