//! From a varlink call to a [`Request`]: which of varlink's own errors answers what does not parse.

use banger_proto::daemon::{Failure, Request};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A call as it comes off the wire, before its method is known.
#[derive(Debug, Deserialize)]
pub(crate) struct RawCall {
    method: String,
    #[serde(default)]
    parameters: Option<Value>,
}

impl RawCall {
    /// The request, or the varlink error that refuses it.
    pub(crate) fn parse(&self) -> Result<Request, Failure> {
        let known = METHODS.contains(&self.method.as_str());
        if !known {
            return Err(Failure::MethodNotFound { method: self.method.chars().take(128).collect() });
        }
        let mut call = Map::from_iter([("method".to_owned(), Value::String(self.method.clone()))]);
        if self.method != "org.varlink.service.GetInfo" {
            let parameters = self.parameters.clone().unwrap_or_else(|| Value::Object(Map::new()));
            call.insert("parameters".to_owned(), parameters);
        }
        serde_json::from_value(Value::Object(call))
            .map_err(|error| Failure::InvalidParameter { parameter: error.to_string() })
    }
}

/// Every method; a test compares it with the variants of [`Request`].
pub(super) const METHODS: &[&str] = &[
    "org.varlink.service.GetInfo",
    "org.varlink.service.GetInterfaceDescription",
    "dev.banger.Daemon.Status",
    "dev.banger.Daemon.Shutdown",
    "dev.banger.Daemon.VmCreate",
    "dev.banger.Daemon.VmStart",
    "dev.banger.Daemon.VmStop",
    "dev.banger.Daemon.VmRestart",
    "dev.banger.Daemon.VmKill",
    "dev.banger.Daemon.VmPause",
    "dev.banger.Daemon.VmResume",
    "dev.banger.Daemon.VmSet",
    "dev.banger.Daemon.VmDelete",
    "dev.banger.Daemon.VmHold",
    "dev.banger.Daemon.VmForward",
    "dev.banger.Daemon.VmUnforward",
    "dev.banger.Daemon.VmList",
    "dev.banger.Daemon.VmShow",
    "dev.banger.Daemon.VmLogs",
    "dev.banger.Daemon.VmHealth",
    "dev.banger.Daemon.VmPing",
    "dev.banger.Daemon.SessionOpen",
    "dev.banger.Daemon.ImageImport",
    "dev.banger.Daemon.ImageRegister",
    "dev.banger.Daemon.ImageList",
    "dev.banger.Daemon.ImageShow",
    "dev.banger.Daemon.ImageDelete",
    "dev.banger.Daemon.KernelPull",
    "dev.banger.Daemon.KernelList",
    "dev.banger.Daemon.KernelShow",
    "dev.banger.Daemon.KernelDelete",
    "dev.banger.Daemon.JobList",
    "dev.banger.Daemon.JobShow",
    "dev.banger.Daemon.JobWatch",
    "dev.banger.Daemon.JobCancel",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Request, Failure> {
        serde_json::from_str::<RawCall>(text).unwrap().parse()
    }

    #[test]
    fn calls_are_told_apart_from_nonsense() {
        assert_eq!(parse(r#"{"method":"dev.banger.Daemon.VmList"}"#), Ok(Request::VmList {}));
        assert_eq!(
            parse(r#"{"method":"org.varlink.service.GetInfo","parameters":{}}"#),
            Ok(Request::GetInfo)
        );
        assert!(matches!(
            parse(r#"{"method":"dev.banger.Daemon.Nope"}"#),
            Err(Failure::MethodNotFound { .. })
        ));
        let missing = parse(r#"{"method":"dev.banger.Daemon.VmShow","parameters":{}}"#);
        assert!(
            matches!(&missing, Err(Failure::InvalidParameter { parameter }) if parameter.contains("vm")),
            "{missing:?}"
        );
    }

    #[test]
    fn every_request_is_listed() {
        // serde names the variants that it knows when it meets one that it does not.
        let error = serde_json::from_str::<Request>(r#"{"method":"?"}"#).unwrap_err().to_string();
        for method in METHODS {
            assert!(error.contains(&format!("`{method}`")), "{method} is no request: {error}");
        }
        assert_eq!(error.matches('`').count() / 2, METHODS.len() + 1, "{error}");
    }
}
