package dev.epiphyte.android

import android.content.Context
import android.content.res.AssetFileDescriptor
import dev.epiphyte.AppInfo
import dev.epiphyte.EpiphyteException
import dev.epiphyte.ModelSource
import dev.epiphyte.appInfo
import java.io.FileNotFoundException

/** Where the library learns of the app it is in. */
public object Epiphyte {
    /**
     * Tells the library of the app's folders, so that what was compiled is kept for the next start,
     * and sends its log lines to logcat. Call it in `Application.onCreate`; it touches no GPU.
     */
    public fun start(context: Context): AppInfo {
        System.loadLibrary("epiphyte_bindings")
        Native.start(context.applicationContext)
        return checkNotNull(appInfo()) { "start told of it" }
    }
}

internal object Native {
    @JvmStatic
    external fun start(context: Context)
}

/**
 * Runs [open] on a model that lies in the APK as it is, without a copy: `Engine.open(it)`. The asset
 * has to be stored uncompressed.
 */
public suspend fun <T> Context.withModelAsset(name: String, open: suspend (ModelSource) -> T): T =
    withModelAsset(name, assets::openFd, open)

internal suspend fun <T> withModelAsset(
    name: String,
    openFd: (String) -> AssetFileDescriptor,
    open: suspend (ModelSource) -> T,
): T {
    val asset = try {
        openFd(name)
    } catch (refused: FileNotFoundException) {
        val hint = "see that it is there, and uncompressed: androidResources { noCompress += \"gguf\" }"
        val message = "asset $name: can't be read where it lies; $hint"
        throw EpiphyteException.Io(message, hint, name).apply { initCause(refused) }
    }
    return asset.use { open(ModelSource.Descriptor(it.parcelFileDescriptor.fd, it.startOffset, it.length)) }
}
