from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('probe', '0002_replay_count'),
    ]

    operations = [
        migrations.AddField(
            model_name='probeoutboxmessage',
            name='interruptions',
            field=models.IntegerField(db_default=0, help_text='How often in a row a process or connection ended while this event was at work alone'),
        ),
    ]
