package dev.epiphyte

import java.io.ByteArrayOutputStream
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.URL
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/**
 * A SuperLink at [address], such as `https://superlink.example:8000`, by the system's own HTTP. An app
 * that has another client, or trusts certificates of its own, writes a [FlowerTransport] of a few
 * lines.
 */
public class FlowerHttp(private val address: String, private val timeoutMillis: Int = 60_000) : FlowerTransport {
    override suspend fun post(request: FlowerRequest): FlowerAnswer? = withContext(Dispatchers.IO) {
        try {
            exchange(request)
        } catch (_: IOException) {
            null
        }
    }

    private fun exchange(request: FlowerRequest): FlowerAnswer {
        val connection = URL(address.trimEnd('/') + request.path).openConnection() as HttpURLConnection
        connection.requestMethod = "POST"
        connection.doOutput = true
        connection.instanceFollowRedirects = false
        connection.connectTimeout = timeoutMillis
        connection.readTimeout = timeoutMillis
        connection.setFixedLengthStreamingMode(request.body.size)
        request.headers.forEach(connection::setRequestProperty)
        connection.outputStream.use { it.write(request.body) }
        val status = connection.responseCode
        val stream = if (status < 400) connection.inputStream else connection.errorStream
        val body = stream?.use { it.readAtMost(MAX_ANSWER) } ?: ByteArray(0)
        return FlowerAnswer(status, connection.getHeaderField("date"), body)
    }
}

/** An object of a message has 5 MiB unless a server is set otherwise. */
private const val MAX_ANSWER = 256 shl 20

private fun InputStream.readAtMost(most: Int): ByteArray {
    val read = ByteArrayOutputStream()
    val piece = ByteArray(1 shl 16)
    while (true) {
        val count = read(piece)
        if (count < 0) return read.toByteArray()
        read.write(piece, 0, count)
        if (read.size() > most) throw IOException("an answer of more than $most bytes")
    }
}
