import EpiphyteCore
import Foundation

/// Carries a node's requests to its SuperLink.
public protocol FlowerTransport: Sendable {
    /// Makes a `POST` to the SuperLink's address and the request's path; nil where no answer came. What it throws ends
    /// `FlowerClient.run`.
    func post(_ request: FlowerRequest) async throws -> FlowerAnswer?
}

/// What an app does for a node of Flower.
public protocol FlowerApp: Sendable {
    /// Stores `state` in place of what was stored, whole or not at all, before it returns.
    func save(_ state: Data) async throws

    /// Does a task. It is cancelled when nobody waits for the task any more. What it throws ends `FlowerClient.run`, and the
    /// same task comes again at the next start; answer with `.refused` what is not to be tried again.
    func work(_ task: FlowerTask) async throws -> FlowerReply

    /// The last task is over.
    func over(_ end: FlowerEnd) async throws
}

extension FlowerApp {
    /// Nothing.
    public func over(_ end: FlowerEnd) async throws {}
}

/// A node of Flower. It makes no request itself: `run` carries out its steps, or the app does with `poll`, `answer` and
/// `reply`.
public final class FlowerClient: Sendable {
    private let core: EpiphyteCore.FlowerClient
    private let now: @Sendable () -> Date
    private let bell = Bell()

    private init(_ core: EpiphyteCore.FlowerClient, _ now: @escaping @Sendable () -> Date) {
        self.core = core
        self.now = now
    }

    /// A node of the signer's key, which must be on P-256, as it was when `saved` was last stored; nil for a new one. `now` is
    /// the device's clock.
    public static func open(
        signer: some Signer, saved: Data? = nil, options: FlowerOptions = FlowerOptions(),
        now: @escaping @Sendable () -> Date = { Date() }
    ) async throws -> FlowerClient {
        FlowerClient(try await .open(signer: Signing(signer), saved: saved, options: options), now)
    }

    /// Takes part until it has left: makes its requests by `transport`, keeps it online while the app works. Cancelling the task
    /// is as good as being killed: what was saved goes on after another `open`.
    ///
    /// Throws `EpiphyteError.superLink` when there is no usable answer for as long as the options allow, and what the app
    /// throws.
    public func run(_ app: some FlowerApp, by transport: some FlowerTransport) async throws {
        var work: Work?
        do {
            while try await step(app, transport, &work) { try Task.checkCancellation() }
        } catch {
            await work?.dropped()
            throw error
        }
        await work?.dropped()
    }

    /// Carries out a step; false for the last one.
    private func step(_ app: some FlowerApp, _ transport: some FlowerTransport, _ work: inout Work?) async throws -> Bool {
        if bell.isLeaving { await drop(&work) }
        switch try await poll() {
        case .save(let state): try await app.save(state)
        case .send(let request): try await answer(try await transport.post(request))
        case .wait(let millis):
            if let done = try work?.result() {
                try await reply(done)
                work = nil
            } else {
                await bell.wait(millis)
            }
        case .work(let task): work = Work(app, task, bell)
        case .over(let end):
            await drop(&work)
            try await app.over(end)
        case .left: return false
        }
        return true
    }

    private func drop(_ work: inout Work?) async {
        await work?.dropped()
        work = nil
    }

    /// What to do next.
    public func poll() async throws -> FlowerStep { try await core.poll(nowMillis: millis) }

    /// Takes what came of a request that was to be sent; nil where no answer came.
    public func answer(_ answer: FlowerAnswer?) async throws { try await core.answer(nowMillis: millis, answer: answer) }

    /// The work is done, or can't be. Saved and sent by the next steps.
    public func reply(_ reply: FlowerReply) async throws { try await core.reply(nowMillis: millis, reply: reply) }

    /// Leaves, by the next steps, from whatever task. A reply that is being sent is sent first, a task that is being worked on is
    /// given up; a second call leaves at once.
    public func leave(_ how: FlowerLeave) async throws {
        bell.leave()
        try await core.leave(how: how)
        bell.ring()
    }

    /// How it stands.
    public func status() async throws -> FlowerStatus { try await core.status() }

    private var millis: Int64 { Int64((now().timeIntervalSince1970 * 1000).rounded()) }
}

/// Work on a task, and what came of it.
private final class Work: @unchecked Sendable {
    private let lock = NSLock()
    private var outcome: Result<FlowerReply, any Error>?
    private var task: Task<Void, Never>?

    init(_ app: some FlowerApp, _ todo: FlowerTask, _ bell: Bell) {
        task = Task {
            let outcome: Result<FlowerReply, any Error>
            do { outcome = .success(try await app.work(todo)) } catch { outcome = .failure(error) }
            lock.withLock { self.outcome = outcome }
            bell.ring()
        }
    }

    /// What came of it; nil while it goes on.
    func result() throws -> FlowerReply? { try lock.withLock { outcome }?.get() }

    /// Ends it.
    func dropped() async {
        task?.cancel()
        await task?.value
    }
}

/// Ends a wait before its time.
private final class Bell: @unchecked Sendable {
    private let lock = NSLock()
    private var isRung = false
    private var waiting: CheckedContinuation<Void, Never>?
    private var leaving = false

    var isLeaving: Bool { lock.withLock { leaving } }

    func leave() { lock.withLock { leaving = true } }

    func ring() {
        let waiting = lock.withLock {
            defer { self.waiting = nil }
            isRung = self.waiting == nil
            return self.waiting
        }
        waiting?.resume()
    }

    /// Until it rings, the time is over or the task is cancelled.
    func wait(_ millis: Int64) async {
        let timer = Task {
            try await Task.sleep(nanoseconds: UInt64(min(millis, 3_600_000)) * 1_000_000)
            ring()
        }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let goOn = lock.withLock {
                    defer { isRung = false }
                    if !isRung { waiting = continuation }
                    return isRung
                }
                if goOn { continuation.resume() }
            }
        } onCancel: {
            ring()
        }
        timer.cancel()
    }
}
