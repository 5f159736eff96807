package org.mote.demo

import android.content.Intent
import java.io.File
import java.nio.file.Files
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config

/**
 * `am start` of a device that is not there: the real [BenchmarkActivity] with the extras of a command, until it is done. No test by
 * itself: `tests/test_android_app.py` starts it in place of Android, when `mote-profile` asks for it over a stand-in for adb.
 *
 * System properties: `mote.am.words`, a file with the words of the command, each ended by a zero; `mote.am.files`, the folder that
 * stands for the app's own on the shared storage.
 */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
class AmStart {
    @get:Rule
    val rule = AppRule()

    @Test
    fun start() {
        val shared = checkNotNull(rule.app.getExternalFilesDir(null)).toPath()
        shared.toFile().deleteRecursively()
        Files.createSymbolicLink(shared, File(System.getProperty("mote.am.files")!!).toPath())
        val words = File(System.getProperty("mote.am.words")!!).readText().removeSuffix("\u0000").split('\u0000')
        rule.open(BenchmarkActivity::class.java, intent(words))
        rule.waitUntil("the benchmark is over") {
            rule.app.benchmark.state is Benchmark.State.Done || rule.app.benchmark.state is Benchmark.State.Failed
        }
    }

    private fun intent(words: List<String>): Intent {
        val intent = Intent(rule.app, BenchmarkActivity::class.java)
        var at = 0
        while (at < words.size) {
            val word = words[at++]
            when (word) {
                "--es" -> intent.putExtra(words[at++], words[at++])
                "--ei" -> intent.putExtra(words[at++], words[at++].toInt())
                "--ez" -> intent.putExtra(words[at++], words[at++].toBooleanStrict())
                "-n" -> check(words[at++] == "${rule.app.packageName}/.${BenchmarkActivity::class.java.simpleName}")
                else -> check(word == "start" || word == "-W") { word }
            }
        }
        return intent
    }
}
