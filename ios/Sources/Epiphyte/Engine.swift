import EpiphyteCore
import Foundation

/// One base model in memory, shared by any number of sessions. Usable from any thread; no call blocks one. Memory on the
/// device is freed with the last that holds it, a session or a trainer of it too, or by `close()`.
public final class Engine: Sendable {
    let core: EpiphyteCore.Engine

    init(_ core: EpiphyteCore.Engine) { self.core = core }

    /// Opens the GPU, checks its driver and loads a GGUF file. Takes seconds the first time on a driver; cancelling the
    /// task stops it, with nothing left of it. `onProgress` hears how far it is, on a thread of the library's.
    public static func open(
        _ model: URL, options: EngineOptions = EngineOptions(),
        onProgress: (@Sendable (LoadProgress) throws -> Void)? = nil
    ) async throws -> Engine {
        try await open(.path(path: model.path), options: options, onProgress: onProgress)
    }

    /// As `open(_:options:onProgress:)`, from anything that holds a model.
    public static func open(
        _ source: ModelSource, options: EngineOptions = EngineOptions(),
        onProgress: (@Sendable (LoadProgress) throws -> Void)? = nil
    ) async throws -> Engine {
        let cancel = CancelToken()
        return try await withTaskCancellationHandler {
            do {
                return try await open(source, options: options, onProgress: onProgress, cancel: cancel)
            } catch EpiphyteError.cancelled {
                throw CancellationError()
            }
        } onCancel: {
            cancel.cancel()
        }
    }

    static func open(
        _ source: ModelSource, options: EngineOptions, onProgress: (@Sendable (LoadProgress) throws -> Void)?,
        cancel: CancelToken
    ) async throws -> Engine {
        let listener = onProgress.map(ProgressListener.init)
        let cached = options.cached(in: EngineOptions.appCaches)
        return Engine(
            try await EpiphyteCore.Engine.open(source: source, options: cached, listener: listener, cancel: cancel))
    }

    /// An empty session.
    public func session() throws -> Session { Session(try core.session(), of: self) }

    /// A session from a file that `Session.save` wrote. Its adapters have to be loaded under the ids they had.
    public func restore(from file: URL) async throws -> Session {
        try await untilCancelled { Session(try await self.core.restore(path: file.path), of: self) }
    }

    /// Reads an adapter, a PEFT folder or a GGUF LoRA, and puts it on the device under `id`. One of that id is replaced;
    /// sessions that use it go on with it until their adapters are set again.
    @discardableResult
    public func loadAdapter(_ id: String, from file: URL) async throws -> LoadReport {
        try await loadAdapter(id, from: .path(path: file.path))
    }

    /// As `loadAdapter(_:from:)`, from anything that holds an adapter.
    @discardableResult
    public func loadAdapter(_ id: String, from source: AdapterSource) async throws -> LoadReport {
        try await untilCancelled { [core] in try await core.loadAdapter(id: id, source: source) }
    }

    /// Forgets an adapter that no session uses.
    public func unloadAdapter(_ id: String) async throws { try await core.unloadAdapter(id: id) }

    /// The adapters that are loaded, by id.
    public func adapters() async throws -> [AdapterState] { try await core.adapters() }

    /// What the file of a loaded adapter held; nil for an id that is not loaded.
    public func adapterReport(_ id: String) async throws -> LoadReport? { try await core.adapterReport(id: id) }

    /// Runs `prompt` with and without an adapter. Throws when it changes nothing.
    public func probeAdapter(_ id: String, prompt: String) async throws -> AdapterProbe {
        try await core.probeAdapter(id: id, prompt: prompt)
    }

    /// Tokens of a text as it stands, with what the tokenizer puts before the first.
    public func countTokens(_ text: String) async throws -> Int { Int(try await core.countTokens(text: text)) }

    /// The prompt for a conversation, as the model's chat template writes it.
    public func renderChat(_ messages: [Message], options: PromptOptions = PromptOptions()) async throws -> String {
        try await core.renderChat(messages: messages, options: options)
    }

    /// Answers of several sessions of this engine, computed together.
    public func batch(_ sequences: [BatchSequence]) throws -> BatchGeneration {
        BatchGeneration(try core.batch(sequences: sequences.map { .init(session: $0.session.core, options: $0.options) }))
    }

    /// A training run on this engine's model, in the folder that `options` names.
    public func trainer(_ options: TrainOptions) throws -> Trainer { Trainer(try core.trainer(options: options), of: self) }

    /// Checks a published version of an adapter and writes it as PEFT's folder, for `loadAdapter` and for `init` of
    /// `TrainOptions`. A version that is refused leaves the folder as it was.
    public func applyVersion(_ version: URL, to folder: URL, options: AcceptOptions) async throws -> AdapterVersion {
        try await core.applyVersion(version: version.path, folder: folder.path, options: options)
    }

    /// Most tokens of a session.
    public var context: Int { get throws { Int(try core.context()) } }

    /// The device on a line: name, backend, driver.
    public var device: String { get throws { try core.device() } }

    /// Bytes of device memory that everything of this engine takes now, training included.
    public var deviceBytes: Int64 { get throws { try core.deviceBytes() } }

    /// The same by what it is for.
    public var classBytes: [ClassBytes] { get throws { try core.classBytes() } }

    /// Names the loaded model: what adapters and saved sessions are made for.
    public var fingerprint: String { get throws { try core.fingerprint() } }

    /// Whether the self-test found that the device computes training right.
    public var trains: Bool { get throws { try core.trains() } }

    /// What the device has done so far: at a second start on a driver no kernel is tested or compiled.
    public var counters: DeviceWork { get throws { try core.counters() } }

    /// Adds up what a model takes on this device, and a training run beside it. No weight is loaded.
    public static func memoryPlan(
        _ model: URL, options: MemoryPlanOptions = MemoryPlanOptions()
    ) async throws -> MemoryPlan {
        try await EpiphyteCore.memoryPlan(source: .path(path: model.path), options: options)
    }

    /// What the engine is now, and what has befallen it.
    public var state: EngineState { get throws { try core.state() } }

    /// The state, and then each change until the engine is closed; those that come while nobody waits are one.
    public var states: EngineStates { EngineStates(core: core.states()) }

    /// Gives memory back to the phone. All comes back when it is next needed, and nothing that is said or learnt changes.
    @discardableResult
    public func memoryPressure(_ level: MemoryLevel) async throws -> MemoryReport {
        try await core.memoryPressure(level: level)
    }

    /// Tells how hot the device is: training slows down, then pauses; then answers rest as well.
    public func thermal(_ state: ThermalState) { core.thermal(state: state) }

    /// Lets the GPU rest until `foreground()`; iOS ends an app that uses it in the background. What needs it throws
    /// `background` and can be called again then; training waits. The one call that waits where it is called, for what the
    /// GPU has been given: tens of milliseconds.
    public func background() { core.background() }

    /// Ends `background()`.
    public func foreground() { core.foreground() }

    /// Closes it with all its sessions, answers and training runs, which throw `closed` from now on. Never waits; a second
    /// close does nothing.
    public func close() { core.close() }

    /// Returns once the engine is closed and its memory free.
    public func closed() async { await core.closed() }
}

extension EngineOptions {
    /// With a place for what was compiled where none is named: a folder of its own among `caches`.
    func cached(in caches: URL?) -> EngineOptions {
        var options = self
        options.cacheDir = cacheDir ?? caches?.appendingPathComponent("epiphyte").path
        return options
    }

    /// The app's own; the library knows those of systems other than Apple's itself.
    static var appCaches: URL? {
        #if canImport(Darwin)
            FileManager.default.urls(for: .cachesDirectory, in: .userDomainMask).first
        #else
            nil
        #endif
    }
}

private final class ProgressListener: LoadListener {
    private let report: @Sendable (LoadProgress) throws -> Void

    init(_ report: @escaping @Sendable (LoadProgress) throws -> Void) { self.report = report }

    func onProgress(progress: LoadProgress) throws { try report(progress) }
}
