"""Speech: torchaudio, speechbrain, open-unmix."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from before_and_after import Prepare, check, train


def test_torchaudio_tacotron2_training() -> None:
    """LSTM over packed text, and a decoder that steps with two LSTM cells."""
    models = pytest.importorskip("torchaudio.models", reason="torchaudio is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(
            models.Tacotron2(
                n_mels=20,
                encoder_embedding_dim=64,
                symbol_embedding_dim=64,
                attention_rnn_dim=128,
                decoder_rnn_dim=128,
                prenet_dim=32,
                postnet_embedding_dim=32,
            )
        )
        tokens = torch.randint(0, 148, (4, 16))
        lengths = torch.tensor([16, 12, 9, 4])
        mel, mel_lengths = torch.randn(4, 20, 40), torch.tensor([40, 33, 20, 11])

        def loss() -> Tensor:
            torch.manual_seed(1)
            before, after, stop, _ = net(tokens, lengths, mel, mel_lengths)
            return (before - mel).square().mean() + (after - mel).square().mean() + stop.mean()

        return train(net, loss)

    check("torchaudio Tacotron2, training", run)


def test_torchaudio_tacotron2_inference() -> None:
    models = pytest.importorskip("torchaudio.models", reason="torchaudio is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(models.Tacotron2(decoder_max_step=40)).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            mel, lengths, alignments = net.infer(torch.randint(0, 148, (1, 20)))
        return [mel, lengths.float(), alignments]

    check("torchaudio Tacotron2, inference", run)


def test_torchaudio_wavernn() -> None:
    """GRU layers, and inference that makes a GRU cell of each and steps through every sample."""
    models = pytest.importorskip("torchaudio.models", reason="torchaudio is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(
            models.WaveRNN(
                upsample_scales=[2, 2], n_classes=16, hop_length=4, n_rnn=64, n_fc=64, n_freq=10
            )
        )
        waves, mels = torch.rand(2, 1, 4 * (12 - 5 + 1)), torch.randn(2, 1, 10, 12)
        labels = torch.randint(16, (2 * waves.shape[-1],))

        def loss() -> Tensor:
            scores = net(waves, mels)
            return torch.nn.functional.cross_entropy(scores.flatten(0, 2), labels)

        return [*train(net, loss), net.eval()(waves, mels)]

    check("torchaudio WaveRNN, training", run)


def test_torchaudio_wavernn_inference() -> None:
    models = pytest.importorskip("torchaudio.models", reason="torchaudio is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(
            models.WaveRNN(
                upsample_scales=[2, 2], n_classes=16, hop_length=4, n_rnn=64, n_fc=64, n_freq=10
            )
        ).eval()
        waves, _ = net.infer(torch.randn(2, 10, 12))
        return [waves]

    # Its infer() builds torch.nn.GRUCell itself.
    check("torchaudio WaveRNN, inference", run, names=True)


def test_torchaudio_hybrid_demucs() -> None:
    """LSTM layers over overlapping frames, inside convolutions."""
    models = pytest.importorskip("torchaudio.models", reason="torchaudio is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(models.HDemucs(sources=["a", "b"], channels=8, depth=5, nfft=1024))
        waves = torch.randn(1, 2, 8192)
        return [*train(net, lambda: net(waves).square().mean(), steps=2), net.eval()(waves)]

    check("torchaudio HDemucs", run)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_speechbrain_layers(kind: str) -> None:
    """Layers with relative lengths: padded input is packed and unpacked."""
    layers = pytest.importorskip("speechbrain.nnet.RNN", reason="speechbrain is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(
            getattr(layers, kind)(hidden_size=64, input_size=40, num_layers=2, bidirectional=True)
        )
        x, lengths = torch.randn(6, 50, 40), torch.tensor([0.5, 1.0, 0.7, 0.3, 0.9, 1.0])
        losses = train(net, lambda: net(x, lengths=lengths)[0].square().mean())
        return [*losses, *net(x, lengths=lengths)[:1]]

    check(f"speechbrain {kind}", run)


def test_speechbrain_recogniser() -> None:
    """An encoder of convolutions and LSTM layers, and a GRU decoder with attention."""
    layers = pytest.importorskip("speechbrain.nnet.RNN", reason="speechbrain is not installed")
    crdnn = pytest.importorskip(
        "speechbrain.lobes.models.CRDNN", reason="speechbrain is not installed"
    )

    def run(prepare: Prepare) -> Sequence[Tensor]:
        encoder = crdnn.CRDNN(
            input_shape=[4, 60, 40],
            cnn_channels=(8, 8),
            rnn_layers=2,
            rnn_neurons=64,
            rnn_bidirectional=True,
            dnn_neurons=64,
            dropout=0.0,
        )
        decoder = layers.AttentionalRNNDecoder(
            rnn_type="gru",
            attn_type="location",
            hidden_size=48,
            attn_dim=32,
            num_layers=2,
            enc_dim=64,
            input_size=20,
            kernel_size=5,
            channels=4,
        )
        net = prepare(torch.nn.ModuleList([encoder, decoder]))
        frames, words = torch.randn(4, 60, 40), torch.randn(4, 9, 20)
        lengths = torch.tensor([1.0, 0.8, 0.6, 1.0])

        def loss() -> Tensor:
            outputs, weights = net[1](words, net[0](frames), lengths)
            return outputs.square().mean() + weights.square().mean()

        return train(net, loss)

    check("speechbrain CRDNN and decoder", run)


def test_open_unmix() -> None:
    """Three bidirectional LSTM layers between linear layers over spectrograms."""
    model = pytest.importorskip("openunmix.model", reason="openunmix is not installed")

    def run(prepare: Prepare) -> Sequence[Tensor]:
        net = prepare(model.OpenUnmix(nb_bins=129, nb_channels=2, hidden_size=128))
        x = torch.rand(4, 2, 129, 60)
        # Dropout between the LSTM layers: the masks are drawn the same from the same seed.
        return [*train(net, lambda: (net(x) - x).square().mean()), net.eval()(x)]

    check("open-unmix", run)
