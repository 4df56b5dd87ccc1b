import EpiphyteCore

#if canImport(BackgroundTasks)
    import BackgroundTasks

    extension BGTask: BackgroundTask {}
#endif

/// The part of `BGTask` that training needs: `BGProcessingTask` and `BGContinuedProcessingTask` are ones.
public protocol BackgroundTask: AnyObject {
    var expirationHandler: (() -> Void)? { get set }
    func setTaskCompleted(success: Bool)
}

extension Trainer {
    /// Trains within a background task: when its time is up, the run stops with a checkpoint, and the next task of the same
    /// folder goes on from there. Tells the system that the task succeeded once the whole run is done.
    @discardableResult
    public func run(
        in task: any BackgroundTask, onProgress: (@Sendable (TrainProgress) throws -> Void)? = nil
    ) -> Task<TrainOutcome, Error> {
        task.expirationHandler = { self.stop() }
        let completion = Completion(task: task)
        return Task {
            do {
                let outcome = try await run(onProgress: onProgress)
                completion.task.setTaskCompleted(success: outcome.end != .interrupted)
                return outcome
            } catch {
                completion.task.setTaskCompleted(success: false)
                throw error
            }
        }
    }
}

/// A task may be completed from any thread.
private struct Completion: @unchecked Sendable {
    let task: any BackgroundTask
}
