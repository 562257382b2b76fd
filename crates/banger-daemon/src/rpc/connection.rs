//! One client's connection: call, reply, call, reply; a stream in between; until the client is gone.
//!
//! Plain replies are written past the library: its buffer grows by a few hundred bytes, and it begins the message anew each
//! time, which takes seconds for a list of a thousand VMs.

use std::os::fd::OwnedFd;

use banger_proto::daemon::{Empty, Failure, JobEventKind};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use zlink::Reply;
use zlink::tokio::unix::Stream;

use super::dispatch::{Answer, Api};
use super::raw::RawCall;
use crate::service::JobWatch;

/// Serves one connection to its end. The error is what ended it; a client that hangs up is an ordinary one.
pub(super) async fn serve(stream: UnixStream, api: &Api) -> Result<(), zlink::Error> {
    let stream = stream.into_std().map_err(zlink::Error::Io)?;
    let mut writer = stream.try_clone().and_then(UnixStream::from_std).map_err(zlink::Error::Io)?;
    let stream = UnixStream::from_std(stream).map_err(zlink::Error::Io)?;
    let mut connection = zlink::Connection::new(Stream::try_from(stream)?);
    loop {
        let (call, fds) = match connection.receive_call::<RawCall>().await {
            Ok((call, fds)) => (call, fds),
            Err(error) => {
                if let zlink::Error::Json(why) = &error {
                    let failure = Failure::InvalidParameter { parameter: why.to_string() };
                    connection.send_error(&failure, Vec::new()).await?;
                }
                return Err(error);
            }
        };
        let more = call.more();
        let request = match call.method().parse() {
            Ok(request) => request,
            Err(failure) => {
                connection.send_error(&failure, Vec::new()).await?;
                continue;
            }
        };
        match api.answer(request, fds).await {
            Ok(Answer::One(message)) => writer.write_all(&message).await.map_err(zlink::Error::Io)?,
            Ok(Answer::Descriptor(fd)) => {
                connection.send_reply(&Reply::new(Some(Empty {})), vec![fd]).await?;
            }
            Ok(Answer::Log(start, fd)) => {
                connection.send_reply(&Reply::new(Some(start)), vec![fd]).await?;
            }
            Ok(Answer::Job(watch)) => stream_job(&mut connection, watch, more).await?,
            Err(report) => connection.send_error(&Failure::Failed(report), Vec::new()).await?,
        }
    }
}

/// Sends a job's events. A caller that did not ask for more than one reply gets the first alone (varlink: a service
/// streams only to calls that say `more`).
async fn stream_job(
    connection: &mut zlink::Connection<Stream>,
    mut watch: JobWatch,
    more: bool,
) -> Result<(), zlink::Error> {
    while let Some(event) = watch.next().await {
        let last = matches!(event.event, JobEventKind::Finished { .. }) || !more;
        let reply = Reply::new(Some(event)).set_continues(Some(!last));
        connection.send_reply(&reply, Vec::<OwnedFd>::new()).await?;
        if last {
            return Ok(());
        }
    }
    // The log ended without its last event: the daemon is closing. The client sees the connection end.
    Err(zlink::Error::UnexpectedEof)
}
