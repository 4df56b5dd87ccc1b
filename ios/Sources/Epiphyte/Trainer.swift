import EpiphyteCore
import Foundation

/// A training run in a folder, which holds the adapter once there was a step. What was begun there and not finished goes on,
/// also after the app was killed: to the same bits as without the interruption.
public final class Trainer: Sendable {
    let core: EpiphyteCore.Trainer
    /// Stays open with it.
    private let engine: Engine

    init(_ core: EpiphyteCore.Trainer, of engine: Engine) {
        self.core = core
        self.engine = engine
    }

    /// Trains to the end, or until it is stopped or the task is cancelled, and leaves the adapter in the folder.
    /// `onProgress` hears of each step, on a thread of the library's; what it throws stops the run.
    @discardableResult
    public func run(onProgress: (@Sendable (TrainProgress) throws -> Void)? = nil) async throws -> TrainOutcome {
        try await withTaskCancellationHandler {
            try await core.run(listener: onProgress.map(ProgressListener.init))
        } onCancel: {
            core.stop()
        }
    }

    /// What the run changed since the `version` that it began from, by the plan of the version's round, as a signed file to
    /// upload. `signer` is called on a thread of the library's.
    public func delta(since version: URL, signer: some Signer, options: DeltaOptions = DeltaOptions()) async throws -> Delta {
        Delta(try await core.delta(version: version.path, signer: Signing(signer), options: options))
    }

    /// Lets the run wait once the present step is done; the device is free for others, its memory stays taken.
    public func pause() { core.pause() }

    /// Lets a run that waits go on.
    public func resume() { core.resume() }

    /// Ends the run soon, with a checkpoint; before one, it ends the next at its beginning.
    public func stop() { core.stop() }
}

private final class ProgressListener: TrainListener {
    private let report: @Sendable (TrainProgress) throws -> Void

    init(_ report: @escaping @Sendable (TrainProgress) throws -> Void) { self.report = report }

    func onProgress(progress: TrainProgress) throws { try report(progress) }
}
