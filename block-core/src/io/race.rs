//! One of several addresses: whichever answers first, with a head start for those that come first.

use std::future::Future;
use std::io;
use std::pin::pin;

use futures::future::{Either, select};
use futures::stream::{FuturesUnordered, StreamExt};

/// Tries `addresses` by `connect`, each further one once the one before has failed or has had its
/// `head_start`. The first that answers wins, and the others are dropped.
///
/// If none answers, fails with the error of the one that failed last.
pub(super) async fn race<A, T, F, W>(
    addresses: impl IntoIterator<Item = A>,
    connect: impl Fn(A) -> F,
    head_start: impl Fn() -> W,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
    W: Future<Output = ()>,
{
    let mut failed = io::ErrorKind::NotFound.into();
    let mut attempts = FuturesUnordered::new();
    for (latest, address) in addresses.into_iter().enumerate() {
        let attempt = connect(address);
        attempts.push(async move { (latest, attempt.await) });
        let mut head_start = pin!(head_start());
        loop {
            match select(attempts.next(), head_start.as_mut()).await {
                Either::Left((Some((_, Ok(connected))), _)) => return Ok(connected),
                Either::Left((Some((number, Err(error))), _)) => {
                    failed = error;
                    if number == latest {
                        break;
                    }
                }
                Either::Left((None, _)) | Either::Right(_) => break,
            }
        }
    }
    while let Some((_, ended)) = attempts.next().await {
        match ended {
            Ok(connected) => return Ok(connected),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use futures::FutureExt;
    use futures::channel::oneshot;

    use super::*;

    /// How an address answers.
    #[derive(Copy, Clone)]
    enum Answer {
        Connects,
        Fails(io::ErrorKind),
        Never,
    }
    use Answer::{Connects, Fails, Never};

    /// The number of the address that won; `None` while none has.
    fn winner(answers: &[Answer], time_passes: bool) -> Option<Result<usize, io::ErrorKind>> {
        let connect = |(number, answer): (usize, &Answer)| {
            let answer = *answer;
            async move {
                match answer {
                    Connects => Ok(number),
                    Fails(kind) => Err(kind.into()),
                    Never => pending().await,
                }
            }
        };
        let head_start = || async move {
            if !time_passes {
                pending::<()>().await;
            }
        };
        let raced = race(answers.iter().enumerate(), connect, head_start).now_or_never()?;
        Some(raced.map_err(|error| error.kind()))
    }

    #[test]
    fn who_is_silent_keeps_nobody_from_answering() {
        assert_eq!(winner(&[Never, Never, Connects], true), Some(Ok(2)));
        assert_eq!(winner(&[Never, Connects], false), None);
        assert_eq!(winner(&[Never, Fails(io::ErrorKind::ConnectionRefused)], true), None);
    }

    #[test]
    fn who_fails_is_followed_at_once() {
        let refused = Fails(io::ErrorKind::ConnectionRefused);
        assert_eq!(winner(&[refused, refused, Connects], false), Some(Ok(2)));
        assert_eq!(winner(&[Connects, refused], false), Some(Ok(0)));
        let last = Fails(io::ErrorKind::TimedOut);
        assert_eq!(winner(&[refused, last], false), Some(Err(io::ErrorKind::TimedOut)));
        assert_eq!(winner(&[], true), Some(Err(io::ErrorKind::NotFound)));
    }

    #[test]
    fn who_began_first_may_answer_late() {
        let (answer, answered) = oneshot::channel();
        let answered = Cell::new(Some(answered));
        let connect = |number: u32| {
            let answered = answered.take();
            async move {
                match answered {
                    Some(answered) => answered.await.map_err(io::Error::other),
                    None => pending::<io::Result<()>>().await,
                }
                .map(|()| number)
            }
        };
        let mut raced = pin!(race(0..3, connect, || ready(())));
        assert!(raced.as_mut().now_or_never().is_none());
        answer.send(()).unwrap();
        assert_eq!(raced.now_or_never().unwrap().unwrap(), 0);
    }
}
