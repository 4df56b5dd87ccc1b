import EpiphyteCore
import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// A SuperLink at an address such as `https://superlink.example:8000`, by a `URLSession`, whose delegate may trust
/// certificates of the app's own.
public struct FlowerHTTP: FlowerTransport {
    private let address: String
    private let session: URLSession

    public init(_ address: URL, session: URLSession = .shared) {
        let text = address.absoluteString
        self.address = text.hasSuffix("/") ? String(text.dropLast()) : text
        self.session = session
    }

    public func post(_ request: FlowerRequest) async throws -> FlowerAnswer? {
        guard let url = URL(string: address + request.path) else { return nil }
        var post = URLRequest(url: url)
        post.httpMethod = "POST"
        post.httpBody = request.body
        for (name, value) in request.headers { post.setValue(value, forHTTPHeaderField: name) }
        let exchange = Exchange()
        let answer: FlowerAnswer? = await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                exchange.start(
                    session.dataTask(with: post) { body, response, _ in
                        let answered = (response as? HTTPURLResponse).map { response in
                            FlowerAnswer(
                                status: Int32(response.statusCode), date: response.value(forHTTPHeaderField: "date"),
                                body: body ?? Data())
                        }
                        continuation.resume(returning: answered)
                    })
            }
        } onCancel: {
            exchange.cancel()
        }
        try Task.checkCancellation()
        return answer
    }
}

/// A request on its way.
private final class Exchange: @unchecked Sendable {
    private let lock = NSLock()
    private var task: URLSessionDataTask?
    private var isCancelled = false

    func start(_ task: URLSessionDataTask) {
        let isCancelled = lock.withLock {
            self.task = task
            return self.isCancelled
        }
        task.resume()
        if isCancelled { task.cancel() }
    }

    func cancel() {
        lock.withLock {
            isCancelled = true
            return task
        }?.cancel()
    }
}
